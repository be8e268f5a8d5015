/*
 * The C API: every declaration Python sees, with its contract. cffi reads this very file as its cdef, so it holds
 * declarations only; fusedrnn.h adds the includes and the guard.
 *
 * Sizes: X inputs, H units, T steps, B rows (sequences side by side), G gate blocks, L lanes of the instruction set,
 * N = ceil(H / L) unit blocks. All arrays are float32. Every field is 8 bytes wide, so that the Numba kernels can read
 * the same structs by offset.
 */

struct fr_panels;
struct fr_span;

/* What a kernel is asked for: the loop over time is its caller's, the loops over units and rows are its own. */
enum fr_phase {
    FR_PROJECT = 0, /* z of the chunk that begins with step t: bias + W x of every running row of each of its steps */
    FR_STEP = 1,    /* step t: all of it, or as much as FR_FINISH needs of every unit */
    FR_FINISH = 2   /* the rest of step t: the product with second_panels, if there are any */
};

/*
 * One phase of one direction of one layer, for the units of span->part. z is the x-projection: of the whole chunk to be
 * written by FR_PROJECT; of step t in the other phases, or NULL where FR_STEP sums over x itself. Reads and writes only
 * what the two structs and z point to, allocates nothing, and may run in several threads at once on one fr_panels. The
 * C kernels and the Numba kernels share this signature: whoever calls it does not know which one it is.
 */
typedef void (*fr_kernel)(const struct fr_panels *w, const struct fr_span *s, int64_t phase, int64_t t, float *z);

enum fr_gate_activation { FR_SIGMOID = 0, FR_HARD_SIGMOID = 1 };
enum fr_state_activation { FR_TANH = 0, FR_RELU = 1, FR_IDENTITY = 2 };
enum fr_most { FR_MOST_THREADS = 64 };
/* When the x-projection is made ahead: never; where there is more than one step; always, because FR_STEP needs it. */
enum fr_projects { FR_NEVER = 0, FR_AHEAD = 1, FR_ALWAYS = 2 };
enum fr_peephole { FR_PEEP_I = 1, FR_PEEP_F = 2, FR_PEEP_O = 4 };

/* A module of a Clockwork RNN: units of one period, in unit blocks of their own. */
typedef struct fr_module {
    int64_t period;
    int64_t first;   /* its first unit */
    int64_t units;   /* how many */
    int64_t reads;   /* the first unit it reads: from there on, all */
    int64_t x_start; /* where its panels begin, in floats */
    int64_t h_start;
    int64_t block; /* its first unit block */
} fr_module;

/*
 * One direction of one layer, packed for one instruction set. Immutable once filled; owned by Python.
 * R is the width of the h that is fed back and shown: H, or the projection's.
 */
typedef struct fr_panels {
    fr_kernel kernel;
    int64_t inputs;             /* X */
    int64_t hidden;             /* H */
    int64_t outputs;            /* R */
    int64_t blocks;             /* N; for a Clockwork RNN the sum over its modules */
    int64_t block_floats;       /* G * L: the gates of one unit block, for one row */
    const float *x_panels;      /* [N][X][G][L], 64-byte aligned; lanes past H are zero */
    const float *h_panels;      /* [N][R][G][L], likewise; [N][H][2][L] for a GRU that resets before */
    const float *second_panels; /* the product that waits for the first: a projection [ceil(R / L)][H][L], or a
                                   reset-before GRU's R_n [N][H][L]; NULL for other cells */
    const float *bias;          /* [N][G][L], likewise: the sum of the biases that may be added up */
    const float *own_bias;      /* [N][L]: d_n of a reset-after GRU; NULL for other cells */
    const float *peepholes;     /* [N][3][L], for i, f and o; NULL without */
    int64_t peephole;           /* which of them: bits of fr_peephole */
    int64_t form;               /* 1: an LSTM with coupled gates, a GRU that resets before; 0: any other */
    int64_t projects;           /* an fr_projects */
    int64_t plain;              /* 1: sigmoid, tanh, no limits and no peepholes: the usual cell */
    int64_t gate_activation;
    int64_t state_activation;
    int64_t output_activation;
    double alpha; /* of the hard sigmoid: max(0, min(1, alpha x + beta)) */
    double beta;
    double clip;      /* limits sums of gates; INFINITY for none */
    double cell_clip; /* limits c, likewise */
    const fr_module *modules;
    int64_t module_count;
} fr_panels;

/*
 * What a kernel reads and writes over a whole sequence. Rows are reached by pointers, to their step 0; from step to
 * step by strides in floats, negative for the reverse direction. Rows are sorted by length, the longest first: those
 * still running are the first active[t].
 */
typedef struct fr_span {
    int64_t steps; /* T >= 1 */
    int64_t batch; /* B >= 1 */
    int64_t part;  /* of parts: which units are computed, and with which other calls side by side */
    int64_t parts;
    int64_t turn;          /* odd: even steps sweep their units downward, else odd steps do */
    const int64_t *active; /* [T], not ascending; NULL: all rows at every step */
    const float *const *x; /* [B] rows of X floats; may not overlap y */
    int64_t x_step;
    float *const *y; /* [B] rows of R floats, written at every step of the row. Step t reads h from y at t - 1 */
    int64_t y_step;
    float *const *h;   /* [B] rows of R floats: in, the state before step 0; out, after the row's own last step */
    float *const *c;   /* [B] rows of H floats, likewise; NULL for cells that have none */
    int64_t *const *t; /* [B] counters of steps, likewise; NULL for cells that have none */
    float *scratch;    /* chunk * B * N * G * L floats for z, 64-byte aligned; contents do not matter before or after */
    const float **scratch_rows; /* chunk * B pointers, likewise */
    float *aside;  /* 2 * B * N * L floats, likewise, for cells with a second product; all parts share it */
    int64_t chunk; /* steps whose x-projection is made at once */
} fr_span;

/* A stack of layers, in one direction or two. Immutable once filled; may be run by several threads at once. */
typedef struct fr_plan {
    int64_t layers;
    int64_t directions;
    int64_t hidden;          /* H */
    int64_t outputs;         /* R: each layer's output is directions * R wide */
    const fr_panels *panels; /* [layers][directions] */
} fr_plan;

/* One call of a plan: whole sequences in, whole sequences out. */
typedef struct fr_sequence {
    int64_t steps; /* T >= 0 */
    int64_t batch; /* B >= 0 */
    const float *x;
    int64_t x_step; /* floats from step to step */
    int64_t x_row;  /* floats from sequence to sequence */
    float *y;       /* may not overlap x, the states or the workspace; not written past a sequence's length */
    int64_t y_step;
    int64_t y_row;
    float *h;               /* [layers * directions][B][R]: in and out; NULL in a group of streams */
    float *c;               /* [layers * directions][B][H], likewise, and NULL for cells that have none */
    int64_t *t;             /* [layers * directions][B], likewise */
    const int64_t *order;   /* [B]: which sequence is the longest, the next longest, ...; NULL: all have T steps */
    const int64_t *lengths; /* [B]: their lengths, in that order */
    const int64_t *active;  /* [T]: how many of them are longer than t */
    int64_t threads;        /* >= 1: how many compute, the caller's among them */
    int64_t wakes;          /* 0: too short to wake threads for that sleep; alone is faster then */
    float *workspace;       /* fr_workspace_floats() floats; contents do not matter before or after */
} fr_sequence;

int64_t fr_workspace_floats(const fr_plan *plan, int64_t steps, int64_t batch, int64_t threads);

/*
 * Runs a plan over sequences: the same bits for any number of threads. Where another call has the team of threads, this
 * one computes alone. Denormals are flushed inside and the caller's floating-point mode is restored.
 */
void fr_run(const fr_plan *plan, const fr_sequence *q);

/* Ends the team's threads and waits for them; the next call that wants them starts them again. */
void fr_team_stop(void);

/* The seconds that a meeting of so many threads takes, on average; negative if the team cannot be had. */
double fr_time_meetings(int64_t threads, int64_t repeats);

/*
 * A plan with its own state, fed one step at a time. `io` has steps = 1 and points to buffers that Python keeps alive;
 * io.x is the bound input buffer; spans are filled by fr_stream_bind. `busy` is nonzero while a thread is inside.
 *
 * A group is a stream whose rows are those of other streams of the plan, in their order: a weight that is read serves
 * several of them. The state of a row is that of its stream; io has none. To take a group is to take all its streams.
 */
typedef struct fr_stream {
    const fr_plan *plan;
    fr_sequence io;
    fr_span *spans; /* [1 + threads][layers]: what each kernel is called with, alone and in a team */
    int64_t inputs; /* X */
    int64_t busy;
    struct fr_stream *const *streams; /* [stream_count], bound before; NULL unless this is a group */
    int64_t stream_count;
} fr_stream;

/* Fills stream->spans, once, so that a step need not. */
void fr_stream_bind(fr_stream *stream);

/* What a call on a stream did. Such calls return it as an int: cffi makes Python's int from that at once. */
enum fr_status {
    FR_OK = 0,
    FR_BUSY = 1,        /* nothing: another thread is inside */
    FR_OTHER_ARRAY = 2, /* nothing: the array is not one that C reads */
    FR_OTHER_OUTPUT = 3 /* a step, but the array that is returned has another shape than it was given */
};

/* One step from the bound input buffer: FR_OK or FR_BUSY. */
int fr_step(fr_stream *stream);

/* One step from x, [B][X] floats without gaps: FR_OK or FR_BUSY. */
int fr_step_from(fr_stream *stream, const float *x);

/* Takes a stream for whatever else reads or writes its state: FR_OK, or FR_BUSY if another thread has it. */
int fr_stream_take(fr_stream *stream);
void fr_stream_release(fr_stream *stream);

/*
 * The seconds that `repeats` steps from the bound input buffer take, looped here. For benchmarks. Each step waits for
 * the one before to finish, as it must for a caller who uses the output: side by side, two small steps overlap.
 */
double fr_time_steps(fr_stream *stream, int64_t repeats);

/* Does nothing: what a call from Python costs. */
void fr_nothing(void);

/* The instruction sets of this build, best first. `isa` counts from 0; a name is NULL past the end. */
const char *fr_isa_name(int64_t isa);
bool fr_isa_runs_here(int64_t isa); /* true if this CPU and its operating system have it */
int64_t fr_isa_lanes(int64_t isa);  /* L */

/* The kernel of a cell, or NULL if there is none of that name. */
fr_kernel fr_find_kernel(int64_t isa, const char *cell);

/* y[k] = the named activation of x[k], as the kernels compute it. 0, or -1 if there is none of that name. */
int fr_activation(int64_t isa, const char *name, const float *x, float *y, int64_t n);

/*
 * The most that the calling thread does of something in a second of its processor time, the best of several rounds that
 * take about `seconds` together:
 *   "fma"                         FLOPs, from registers
 *   "read_1", "read_2", "read_4"  bytes of `buffer`, read and summed in 1, 2 or 4 streams side by side
 *   "tile"                        FLOPs of the tallest tile of four gates, its panels read from `buffer`
 *   "exchange"                    steps whose h passes through memory to all lanes of the next, and is summed
 *   "sigmoid", "tanh"             evaluations of a vector, each of the result before
 * Only "read_" and "tile" use the buffer: ordinary numbers, near 1. 0 if it is too small to read; -1 if there is no
 * such probe.
 */
double fr_probe(int64_t isa, const char *probe, const float *buffer, int64_t floats, double seconds);

/* The compiler and its flags, for reports. */
const char *fr_build(void);
