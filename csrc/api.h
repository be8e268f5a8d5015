/*
 * The C API: every declaration Python sees, with its contract. cffi reads this very file as its cdef, so it holds
 * declarations only; fusedrnn.h adds the includes and the guard.
 *
 * Sizes: X inputs, H units, T steps, B rows (sequences side by side), G gate blocks, L lanes of the instruction set,
 * N = ceil(H / L) unit blocks. All arrays are float32. Every field is 8 bytes wide, so that the Numba kernels can read
 * the same structs by offset; they read the constants, too, from here.
 */

struct fr_panels;
struct fr_span;

/* What a kernel is asked for. The loop over time is its caller's, the loops over units and rows are its own. */
enum fr_phase {
    FR_INPUT = 0, /* the input product z = bias + W x: of the running rows of each step of the chunk from t on */
    FR_STEP = 1,  /* step t: all of it, or what FR_FINISH needs of every unit */
    FR_FINISH = 2 /* the rest of step t: the product with dependent_panels */
};

/*
 * One phase of one direction of one layer, for the units of span->share. z is the input product: in FR_INPUT the whole
 * chunk, to be written; in the other phases step t, or NULL where FR_STEP sums over x itself. A kernel reads and writes
 * only what the two structs and z point to, allocates nothing, and may run in several threads at once on one fr_panels.
 * C kernels and Numba kernels have this one signature, and the caller does not know which of them it calls.
 */
typedef void (*fr_kernel)(const struct fr_panels *w, const struct fr_span *s, int64_t phase, int64_t t, float *z);

enum fr_gate_activation { FR_SIGMOID = 0, FR_HARD_SIGMOID = 1 };
enum fr_state_activation { FR_TANH = 0, FR_RELU = 1, FR_IDENTITY = 2 };
enum fr_max {
    FR_MAX_THREADS = 64, /* of one call */
    FR_MAX_ROWS = 8,     /* of a tile */
    FR_MAX_BLOCKS = 8,   /* of a tile: unit blocks */
    FR_MAX_SUMS = 24,    /* of a tile of several rows: vectors in registers */
    FR_MAX_ROW_SUMS = 8  /* of a tile of one row */
};
enum fr_floats {
    FR_LINE_FLOATS = 16,      /* floats in a cache line */
    FR_FAR_FLOATS = 48 * 1024 /* panels of more floats come from L2 or beyond */
};

/* The constants of the activations: csrc/cells/activations.h says what they are. */
static const float FR_SIGMOID_LIMIT = 33.0f;
static const float FR_TANH_LIMIT = 10.0f;
static const float FR_LOG2_E = 0x1.715476p+0f;
static const float FR_ROUNDING = 12583039.0f; /* 1.5 * 2^23 + 127 */
static const float FR_EXP2_0 = 0x1.62e430p-1f;
static const float FR_EXP2_1 = 0x1.ebfbdep-3f;
static const float FR_EXP2_2 = 0x1.c6afa4p-5f;
static const float FR_EXP2_3 = 0x1.3b2c3ep-7f;
static const float FR_EXP2_4 = 0x1.5ef12ap-10f;
static const float FR_EXP2_5 = 0x1.4296bcp-13f;

/* When FR_INPUT is called: never; where a call has more than one step; always, because FR_STEP cannot sum over x. */
enum fr_input_product { FR_NEVER = 0, FR_AHEAD = 1, FR_ALWAYS = 2 };
enum fr_peephole { FR_PEEP_I = 1, FR_PEEP_F = 2, FR_PEEP_O = 4 };

/* A module of a Clockwork RNN: units of one period, in unit blocks of their own. */
typedef struct fr_module {
    int64_t period;  /* steps from one update to the next */
    int64_t first;   /* its first unit */
    int64_t units;   /* the number of its units */
    int64_t reads;   /* the first unit of h that it reads; it reads all units from there to the end */
    int64_t x_start; /* the offset of its panels in x_panels, in floats */
    int64_t h_start; /* the offset of its panels in h_panels, in floats */
    int64_t block;   /* its first unit block */
} fr_module;

/*
 * One direction of one layer, packed for one instruction set. Immutable once filled; owned by Python. R is the width
 * of the output, which is fed back as h: H, or the projection's width. Panels and biases are 64-byte aligned, and their
 * lanes past H (past R in a projection) are zero.
 */
typedef struct fr_panels {
    fr_kernel kernel;              /* of the cell table's row, for the instruction set of the panels */
    int64_t inputs;                /* X */
    int64_t hidden;                /* H */
    int64_t outputs;               /* R */
    int64_t blocks;                /* N; for a Clockwork RNN the sum over its modules */
    int64_t block_floats;          /* G * L: the sums of one unit block, for one row */
    const float *x_panels;         /* W, [N][X][G][L] */
    const float *h_panels;         /* R, [N][R][G][L]; [N][H][2][L] without R_n for a GRU that resets before */
    const float *dependent_panels; /* the matrix of a product that needs a result of all units first: a projection
                                      [ceil(R / L)][H][L], or R_n [N][H][L] of a GRU that resets before; else NULL */
    const float *bias;             /* [N][G][L]: the sum of the biases that may be added up */
    const float *recurrent_bias;   /* [N][L]: d_n of a GRU that resets after; NULL for other cells */
    const float *peepholes;        /* [N][3][L], for i, f and o; NULL without peepholes */
    int64_t peephole;              /* the gates that have peepholes, as bits of fr_peephole */
    int64_t input_product;         /* an fr_input_product */
    int64_t default_activations;   /* 1: sigmoid, tanh and tanh, no limits, no peepholes and no projection; else 0 */
    int64_t gate_activation;       /* an fr_gate_activation */
    int64_t state_activation;      /* an fr_state_activation: of the candidate */
    int64_t output_activation;     /* an fr_state_activation: of c in an LSTM's output */
    double alpha;                  /* the slope of the hard sigmoid max(0, min(1, alpha x + beta)) */
    double beta;                   /* its value at 0 */
    double clip;                   /* the limit of the gates' sums; INFINITY for none */
    double cell_clip;              /* the limit of c; INFINITY for none */
    const fr_module *modules; /* [module_count], by ascending period; NULL for other cells than the Clockwork RNN */
    int64_t module_count;     /* the number of modules */
} fr_panels;

/*
 * What a kernel reads and writes over a whole sequence. Each row is reached by a pointer to its step 0, and from step
 * to step by a stride in floats, which is negative in the reverse direction. Rows are sorted by length, the longest
 * first: those still running at step t are the first active[t].
 */
typedef struct fr_span {
    int64_t steps;    /* T >= 1 */
    int64_t batch;    /* B >= 1 */
    int64_t share;    /* which share of the units is computed, 0 <= share < shares; other threads compute the others */
    int64_t shares;   /* the number of shares into which the units are divided, >= 1 */
    int64_t downward; /* odd: steps 0, 2, 4, ... sweep their unit blocks downward; even: steps 1, 3, 5, ... do */
    const int64_t *active; /* [T], never ascending: the number of rows that are running; NULL: B at every step */
    const float *const *x; /* [B] pointers to rows of X floats; may not overlap y */
    int64_t x_step;        /* the stride of x */
    float *const *y;       /* [B] pointers to rows of R floats, written at each step of a row. Step t reads h from
                              y at t - 1 */
    int64_t y_step;        /* the stride of y */
    float *const *h;       /* [B] pointers to R floats: in, the h before step 0; out, the h after the row's own last
                              step, which the caller of the kernel writes */
    float *const *c;       /* [B] pointers to H floats: in, the c before step 0; out, the c after the row's own last
                              step. The pointers are NULL for cells without c */
    int64_t *const *t;     /* [B] pointers to counters of steps, which the caller of the kernel advances. The
                              pointers are NULL for cells without a counter */
    float *scratch;        /* [chunk * B][N][G][L], 64-byte aligned: for z; no value survives a call */
    const float **scratch_rows; /* [chunk * B]: for the rows of x of a chunk; no value survives a call */
    float *intermediate;        /* 64-byte aligned, for cells with dependent_panels: [B][N * L] m of an LSTM with a
                                   projection, or [2][B][N * L] r * h and z of a GRU that resets before. All shares
                                   have the same one */
    int64_t chunk;              /* the number of steps whose input product is made at once, >= 1 */
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

/* The kernel of a row of the cell table, by Cell.kernel of python/fusedrnn/cells.py; NULL if there is none of that
 * name. */
fr_kernel fr_find_kernel(int64_t isa, const char *name);

/*
 * How `count` rows of `gates` gate blocks, 1 to 4, are cut into tiles: the four fields of fr_tiling in
 * csrc/cells/product.h. For tests: Numba has the same rules.
 */
void fr_find_tiling(int64_t isa, int64_t gates, int64_t count, int64_t *tiling);

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
