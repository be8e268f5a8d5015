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
struct fr_back_span;

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

/* What a backward kernel is asked for: d is for the gradient of. */
enum fr_back_phase {
    FR_BACK_STEP = 0,    /* step t: dz of the sums, or what FR_BACK_FINISH needs of every unit */
    FR_BACK_FINISH = 1,  /* the rest of step t: the product with back_dependent_panels */
    FR_BACK_STATE = 2,   /* dh before step 0, after the last FR_BACK_STEP */
    FR_BACK_WEIGHTS = 3, /* what the steps of a chunk add to the gradients of weights */
    FR_BACK_INPUT = 4    /* dx of the steps of a chunk */
};

/*
 * One phase of the backward pass of one direction of one layer, for the units, weights or rows of span->share. z is the
 * record of step t, or of the first step of the chunk.
 */
typedef void (*fr_back_kernel)(const struct fr_panels *w, const struct fr_back_span *b, int64_t phase, int64_t t,
                               const float *z);

/*
 * The type of the elements of a matrix's panels. FR_F16 and FR_BF16 are widened to floats as they are read. FR_I8 and
 * FR_W8A7 are int8, with a scale for each row of the matrix; their product is one of integers, of 15 bits of x and h or
 * of 7: csrc/weights/i8.h.
 */
enum fr_weight_type { FR_F32 = 0, FR_F16 = 1, FR_BF16 = 2, FR_I8 = 3, FR_W8A7 = 4 };
enum fr_i8 { FR_I8_SLICE = 1024 /* of a row: 1024 * 128 * 16383 < 2^31 */ };

enum fr_gate_activation { FR_SIGMOID = 0, FR_HARD_SIGMOID = 1 };
enum fr_state_activation { FR_TANH = 0, FR_RELU = 1, FR_IDENTITY = 2 };
enum fr_max {
    FR_MAX_THREADS = 64,   /* of one call */
    FR_MAX_ROWS = 8,       /* of a tile */
    FR_MAX_BLOCKS = 8,     /* of a tile: unit blocks */
    FR_MAX_SUMS = 24,      /* of a tile of several rows: vectors in registers */
    FR_MAX_ROW_SUMS = 8,   /* of a tile of one row */
    FR_MAX_TILE_SUMS = 256 /* of a tile of int8: all of FR_MAX_ROWS x FR_MAX_BLOCKS x 4 gates */
};
enum fr_bytes { FR_LINE_BYTES = 64 /* of a cache line */ };
enum fr_floats {
    FR_LINE_FLOATS = 16,      /* floats in a cache line */
    FR_FAR_FLOATS = 48 * 1024 /* panels of more bytes than so many floats come from L2 or beyond */
};

/* The constants of the activations: csrc/cells/activations.h says what they are. */
static const float FR_SIGMOID_LIMIT = 33.0f;
static const float FR_FULL_SIGMOID_LIMIT = 88.0f;
static const float FR_TANH_LIMIT = 10.0f;
static const float FR_LOG2_E = 0x1.715476p+0f;
static const float FR_ROUNDING = 12583039.0f; /* 1.5 * 2^23 + 127 */
static const float FR_EXP2_0 = 0x1.62e430p-1f;
static const float FR_EXP2_1 = 0x1.ebfbdep-3f;
static const float FR_EXP2_2 = 0x1.c6afa4p-5f;
static const float FR_EXP2_3 = 0x1.3b2c3ep-7f;
static const float FR_EXP2_4 = 0x1.5ef12ap-10f;
static const float FR_EXP2_5 = 0x1.4296bcp-13f;

/* How rows are made integers: csrc/weights/i8.h says what these are. */
static const float FR_Q15 = 16382.0f;         /* 16383 may be rounded to, in any rounding mode */
static const float FR_Q7 = 63.99f;            /* as may 64 */
static const float FR_Q_ROUNDING = 0x1.8p23f; /* the lower half of the bits of v / step + this is q */
static const float FR_SMALLEST_ROW = 0x1p-100f;

/* When FR_INPUT is called: never; where a call has more than one step; always, because FR_STEP cannot sum over x. */
enum fr_input_product { FR_NEVER = 0, FR_AHEAD = 1, FR_ALWAYS = 2 };
enum fr_peephole { FR_PEEP_I = 1, FR_PEEP_F = 2, FR_PEEP_O = 4 };

/* A module of a Clockwork RNN: units of one period, in unit blocks of their own. */
typedef struct fr_module {
    int64_t period;  /* steps from one update to the next */
    int64_t first;   /* its first unit */
    int64_t units;   /* the number of its units */
    int64_t reads;   /* the first unit of h that it reads; it reads all units from there to the end */
    int64_t x_start; /* the offset of its panels in x_panels, in weights */
    int64_t h_start; /* the offset of its panels in h_panels, in weights */
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
    int64_t weight_type;           /* an fr_weight_type: of x_panels, h_panels and dependent_panels, which are declared
                                      as what they are for FR_F32 */
    const float *x_panels;         /* W, [N][X][G][L] */
    const float *h_panels;         /* R, [N][R][G][L]; [N][H][2][L] without R_n for a GRU that resets before */
    const float *dependent_panels; /* the matrix of a product that needs a result of all units first: a projection
                                      [ceil(R / L)][H][L], or R_n [N][H][L] of a GRU that resets before; else NULL */
    const float *x_scales;         /* [N][G][L], of the rows of W; NULL unless weight_type is one of int8 */
    const float *h_scales;         /* [N][G][L] or [N][2][L], of the rows of h_panels, likewise */
    const float *dependent_scales; /* [ceil(R / L)][L] or [N][L], of the rows of dependent_panels, likewise */
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
    const fr_module *modules;   /* [module_count], by ascending period; NULL for other cells than the Clockwork RNN */
    int64_t module_count;       /* the number of modules */
    int64_t recorded;           /* the number of values that a tape keeps of a unit: Cell.recorded of the cell table */
    fr_back_kernel back_kernel; /* of the cell table's row; NULL, as the panels that follow, until one is asked for */
    const float *back_x_panels; /* W transposed, [ceil(X / L)][G * H][L]; without W_n for a GRU that resets after */
    const float *back_late_panels; /* W_n transposed, [ceil(X / L)][H][L], of a GRU that resets after; else NULL */
    const float *back_h_panels;    /* R transposed, [ceil(R / L)][G * H][L]; without R_n for a GRU that resets before */
    const float *back_dependent_panels; /* P transposed, [N][R][L], or R_n transposed, [N][H][L], of a GRU that resets
                                           before; else NULL */
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
    const int64_t *const *since; /* [B] pointers to the number of steps since the last reset at each step: 0 where the
                                    state is zeroed before the step, negative before the first reset. NULL: none */
    int64_t since_step;          /* the stride of since */
    const float *zeros;          /* [max(H, R)], where there are resets */
    float *checkpoints;          /* c before the first segment, [B][H]; NULL if none are written */
    int64_t checkpoint_step;     /* floats from segment to segment */
    int64_t segment;             /* steps of a segment */
    float *tape; /* the records of all steps, [sum of active][N][recorded][L], or NULL: z is then in it, and keeps the
                    sums. A Clockwork RNN's records are [2][N * L]: the slope of the activation, 0 in idle units, and 1
                    in idle units */
    int64_t z_block;            /* floats of a unit block in z: G * L, or recorded * L */
    float *scratch;             /* [chunk * B][N][G][L], 64-byte aligned: for z; no value survives a call */
    const float **scratch_rows; /* [chunk * B]: for the rows of x of a chunk; no value survives a call */
    float *intermediate;        /* 64-byte aligned, for cells with dependent_panels: [B][N * L] m of an LSTM with a
                                   projection, or [2][B][N * L] r * h and z of a GRU that resets before. All shares
                                   have the same one */
    int64_t chunk;              /* the number of steps whose input product is made at once, >= 1 */
} fr_span;

/* A stack of layers, in one direction or two. Immutable once filled; may be run by several threads at once. */
typedef struct fr_plan {
    int64_t layers;
    int64_t directions;      /* D: 1 or 2 */
    int64_t reverse;         /* 1 if the only direction runs from the last step to the first, or else 0 */
    int64_t lanes;           /* L */
    int64_t hidden;          /* H */
    int64_t outputs;         /* R; the output of a layer is D * R wide */
    const fr_panels *panels; /* [layers][directions] */
} fr_plan;

/*
 * How a call is divided among threads. What a number is computed from, and in which order, is the same in all of these,
 * and in one thread: so are the bits.
 */
enum fr_division {
    FR_ALONE = 0,      /* not: one thread computes everything */
    FR_DIRECTIONS = 1, /* each direction has threads of its own, which may divide it further by rows or units; all
                          threads wait for each other at the end of a layer */
    FR_ROWS = 2,       /* each thread has sequences of its own, and waits for nobody */
    FR_UNITS = 4,      /* each thread has units of its own, whose panels stay in its core's L2; after each product that
                          another product needs, the threads of the direction wait for each other */
    FR_LAYERS = 8      /* each thread has layers of its own, a few steps behind the layer below: a layer pipeline */
};

/* The division of a call of one shape: T steps, B rows and the threads it may have. Filled by fr_bind_shape. */
typedef struct fr_schedule {
    int64_t division;      /* bits of fr_division */
    int64_t threads;       /* number of threads that compute: no more than have work */
    int64_t groups;        /* number of groups of threads: D under FR_DIRECTIONS, else 1 */
    int64_t group_threads; /* number of threads in a group */
    int64_t rows;          /* largest number of rows of a thread */
    int64_t chunk;         /* number of steps whose input product a thread makes at once */
    int64_t chunk_alone;   /* number of steps whose input product a thread that computes alone makes at once */
} fr_schedule;

/*
 * The workspaces of threads that compute side by side, or of one that computes alone, in floats. A thread has pointers
 * to its rows [spans][5][rows], active [T] and scratch_rows [chunk][rows]. Threads that divide units share a scratch,
 * any other thread has its own: z [chunk][rows][N][G][L], and the intermediate of that many rows, if any.
 */
typedef struct fr_thread_workspace {
    int64_t start;        /* start of the first one */
    int64_t size;         /* size of each */
    int64_t rows;         /* largest number of rows of a thread */
    int64_t chunk;        /* number of steps of a chunk */
    int64_t active;       /* start of active in it */
    int64_t scratch_rows; /* start of scratch_rows in it */
    int64_t scratch_size; /* size of each scratch */
    int64_t intermediate; /* start of the intermediate in a scratch */
} fr_thread_workspace;

/* Where the parts of a call's workspace begin, in floats, and their sizes. Filled by fr_bind_shape. */
typedef struct fr_workspace {
    int64_t layer_buffers;  /* number of layer buffers, used in turn: outputs of all layers but the last */
    int64_t layer_buffer;   /* size of a layer buffer, [T][B][D * R] */
    int64_t barrier_counts; /* start of the barrier counts, [2][threads]: within a layer, and at the end of a layer */
    fr_thread_workspace alone;
    fr_thread_workspace threads;
    int64_t scratch; /* start of the scratches */
    int64_t size;    /* size of all, with what it takes to align its start to a cache line */
} fr_workspace;

/* One call of a plan: whole sequences in, whole sequences out. */
typedef struct fr_sequence {
    int64_t steps;          /* T >= 0 */
    int64_t batch;          /* B >= 0 */
    const float *x;         /* [T][B][X], with the strides that follow */
    int64_t x_step;         /* number of floats from step to step */
    int64_t x_row;          /* number of floats from sequence to sequence */
    float *y;               /* [T][B][D * R], with the strides that follow; not written past a sequence's length */
    int64_t y_step;         /* number of floats from step to step */
    int64_t y_row;          /* number of floats from sequence to sequence */
    float *h;               /* [layers * D][B][R], read and written; NULL in a group of streams */
    float *c;               /* [layers * D][B][H], read and written; NULL for cells without it and in a group */
    int64_t *t;             /* [layers * D][B], read and written; NULL for cells without it and in a group */
    const int64_t *order;   /* [B] indices of sequences, the longest first; NULL if all have T steps */
    const int64_t *lengths; /* [B] lengths, in that order */
    const int64_t *active;  /* [T] numbers of sequences longer than t */
    const int64_t *since;   /* [T][B] steps since the last reset, as in fr_span; NULL without resets */
    const float *zeros;     /* [max(H, R)], where there are resets */
    int64_t records;        /* 1: the call is remembered for a backward pass, by its tape or by its checkpoints */
    float *tape;            /* [layers * D][tape_floats], written; NULL for checkpoints, and without records */
    int64_t tape_floats;    /* size of the tape of a layer and direction: a multiple of a cache line */
    float *checkpoints;     /* [segments][layers * D][B][H], written: c before each segment, rows in the order of
                               lengths; NULL for a tape, for cells without c, and without records */
    int64_t segment;        /* number of steps of a segment, filled by fr_bind_shape for a call that records */
    int64_t threads;        /* number of threads that may compute, the caller's included: 1 to FR_MAX_THREADS */
    int64_t wakes;          /* 0 if the call is too short to wake sleeping threads for; one thread is faster then */
    float *workspace;       /* fr_bind_shape() floats; contents do not matter before or after a call */
    fr_schedule schedule;
    fr_workspace layout;
} fr_sequence;

/*
 * Binds a call to its shape: fills q->schedule and q->layout from q->steps, q->batch and q->threads, once for all calls
 * of that shape. Returns the size of its workspace in floats.
 */
int64_t fr_bind_shape(const fr_plan *plan, fr_sequence *q);

/* The gradients of the weights of one direction of one layer, to which a backward pass adds. All are in the shapes of
 * the weights; each array and each row of a matrix begins on a cache line, and has room to the next one. */
typedef struct fr_weight_gradients {
    float *dW;      /* [G * H][X] */
    float *dR;      /* [G * H][R] */
    float *dP;      /* [R][H], of a projection */
    float *db;      /* [G * H] */
    float *dd;      /* [H], of d_n of a GRU that resets after */
    float *dp;      /* [3][H], of peepholes for i, f and o */
    int64_t dW_row; /* floats from row to row */
    int64_t dR_row;
    int64_t dP_row;
} fr_weight_gradients;

/* Where these arrays begin in an array of all gradients, in floats; 0 for those that a cell does not have. */
typedef struct fr_gradient_layout {
    int64_t dW;
    int64_t dR;
    int64_t dP;
    int64_t db;
    int64_t dd;
    int64_t dp;
} fr_gradient_layout;

/*
 * What a backward kernel reads and writes. A row of gradients dz is [G * H] of the sums, in the order of the rows of
 * the canonical weights, whatever L is: so products over it have the same bits on every instruction set. Two parts may
 * follow: [R] dh of a projection, or [H] dn of a GRU that resets after, whose row has r * dn among the sums; and [H],
 * what is multiplied with the weights of dependent_panels: m of a projection, r * h of a GRU that resets before.
 */
typedef struct fr_back_span {
    const fr_span *s;       /* the recorded call: x, y, and h and c before step 0 */
    const float *const *dy; /* [B] pointers to rows of R floats */
    int64_t dy_step;        /* the stride of dy */
    float *const *dx;       /* [B] pointers to rows of X floats */
    int64_t dx_step;        /* the stride of dx */
    int64_t adds_dx;        /* 1: to what is there; 0: over it */
    float *const *dh; /* [B] pointers to R floats: in, of h after the row's last step; then what reaches the h before
                         step t beside the product; out, of h before step 0 */
    float *const *dc; /* [B] pointers to H floats: of c, likewise */
    float *dz;        /* rows of gradients of step t, or of the steps of the chunk */
    const float *dz_after; /* rows of gradients of step t + 1 */
    int64_t dz_row;        /* floats from row to row */
    int64_t end;           /* the step after the chunk */
    int64_t chunk_rows;    /* the number of rows of the chunk */
    const float **rows;    /* [largest chunk_rows], for pointers to rows of a chunk */
    float *gathered;       /* [FR_MAX_BLOCKS][largest chunk_rows][L], 64-byte aligned, for values of those rows */
    float *columns;        /* [largest chunk_rows * (dz_row / shares + 1)], for columns of dz */
    fr_weight_gradients gradients;
} fr_back_span;

/* A backward pass over a recorded call. */
typedef struct fr_backward {
    const fr_sequence *forward; /* the recorded call, bound and run; not written */
    const float *h;             /* [layers * D][B][R]: before step 0 */
    const float *c;             /* [layers * D][B][H], or NULL */
    const int64_t *t;           /* [layers * D][B], or NULL */
    const float *dy;            /* [T][B][D * R], with the strides that follow */
    int64_t dy_step;
    int64_t dy_row;
    float *dx; /* [T][B][X], with the strides that follow, written up to each sequence's length; NULL if not wanted */
    int64_t dx_step;
    int64_t dx_row;
    float *dh;                         /* [layers * D][B][R]: in, of the state after; out, of the state before */
    float *dc;                         /* [layers * D][B][H], likewise, or NULL */
    const fr_gradient_layout *layouts; /* [layers * D] */
    float *gradients;                  /* of all weights, as laid out, from a cache line on: added to */
    float *workspace;                  /* fr_bind_backward() floats; contents do not matter before or after */
    int64_t rows;   /* largest number of rows of a chunk, which is a segment; filled by fr_bind_backward, as the rest */
    int64_t dz_row; /* floats of a row of gradients */
    int64_t layer_gradient; /* floats of the gradient of a layer's output */
    int64_t segment_floats; /* floats of the records of a segment, and of what computes them again */
    int64_t thread_floats;  /* floats that each thread has */
} fr_backward;

/* The number of steps of a segment: what a backward pass goes over at a time. */
int64_t fr_segment_steps(int64_t steps, int64_t batch);

/* The size of the tape of one layer and direction, in floats, for that many rows: steps of sequences. */
int64_t fr_tape_floats(const fr_plan *plan, int64_t rows);

/* Binds a backward pass to the shape of its recorded call. Returns the size of its workspace in floats. */
int64_t fr_bind_backward(const fr_plan *plan, fr_backward *b);

/*
 * Runs a backward pass, layer by layer from the last, each direction from its last step to its first: the same bits for
 * any number of threads, which is that of the recorded call.
 */
void fr_run_backward(const fr_plan *plan, const fr_backward *b);

/* What a call of a shape would take, by the model of schedule.c. */
typedef struct fr_prediction {
    int64_t threads;         /* number of threads that the call may have */
    int64_t division;        /* bits of fr_division */
    double seconds;          /* time of the call */
    int64_t barrier_threads; /* largest number of threads that wait for each other in it; 0 if none do */
} fr_prediction;

/*
 * What a call takes with `threads` threads. `step_seconds` is the time of a step of all layers on one thread;
 * `barrier_seconds` [threads + 1] are the times of a barrier, by the number of threads.
 */
fr_prediction fr_predict(const fr_plan *plan, int64_t steps, int64_t batch, int64_t threads, double step_seconds,
                         const double *barrier_seconds);

/*
 * The number of threads, from 1 to `cores`, for which fr_predict says the least. More than one thread must be faster by
 * a quarter, because threads cost caches and power besides; of equal numbers it is the smallest.
 * `barrier_seconds` is [cores + 1].
 */
fr_prediction fr_choose_threads(const fr_plan *plan, int64_t steps, int64_t batch, int64_t cores, double step_seconds,
                                const double *barrier_seconds);

/*
 * Runs a plan over sequences, bound by fr_bind_shape: the same bits for any number of threads. Where another call has
 * the thread pool, this one computes alone. Denormals are flushed inside, rounding is the caller's, and the caller's
 * floating-point mode is restored.
 */
void fr_run(const fr_plan *plan, const fr_sequence *q);

/*
 * Ends the threads of the pool, after the call that has them; the next call that wants threads starts them again.
 * Returns false, with nothing done, if that call is not over after `seconds`: a process that wants to end, ends.
 */
bool fr_pool_stop(double seconds);

/*
 * Times barriers of `threads` threads: in each of [rounds], the seconds of a barrier, on average over `repeats`. Ends
 * the threads that it had to start. Returns false if the pool is at work or the threads cannot be had.
 */
bool fr_time_barriers(int64_t threads, int64_t repeats, int64_t rounds, double *seconds);

/*
 * A plan with its own state, fed one step at a time.
 *
 * A group is a stream whose rows are those of other streams of the plan, in their order: a weight that is read serves
 * several of them. The state of a row is that of its stream; io has none. To take a group is to take all its streams.
 */
typedef struct fr_stream {
    const fr_plan *plan;
    fr_sequence
        io; /* a bound call of one step. Its arrays live as long as the stream; io.x is the bound input buffer */
    fr_span *spans; /* [1 + io.threads][layers] arguments of the kernels: of a thread alone, then of each thread */
    int64_t inputs; /* X */
    int64_t busy;   /* nonzero while a thread is inside */
    struct fr_stream *const *streams; /* [stream_count] streams of a group, bound before it; NULL unless this is one */
    int64_t stream_count;             /* number of streams of a group */
} fr_stream;

/* Fills stream->spans, once for all steps. */
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
 * The seconds that `repeats` steps from the bound input buffer take, looped here; negative, with nothing done, if
 * another thread is inside. For benchmarks. Each step waits until the one before has finished, as a caller who uses the
 * output must: side by side, two small steps overlap.
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
fr_back_kernel fr_find_back_kernel(int64_t isa, const char *name);

/*
 * Packs `gates` gate blocks of a canonical matrix, each of `units` rows of `depth` floats, into panels
 * [ceil(units / lanes)][depth][gates][lanes]. `stride` is the number of floats from row to row; `lanes` is a multiple
 * of 4. Lanes past the last unit are zero.
 */
void fr_pack(const float *rows, int64_t stride, int64_t units, int64_t depth, int64_t gates, int64_t lanes,
             float *panels);

/* fr_pack of narrow weights, whose elements are of 16 or 8 bits; `stride` is the number of elements from row to row.
 * Panels of 8 bits are blocks of [ceil(depth / 4)][gates][lanes][4], and sums of weights behind: csrc/weights/i8.h. */
void fr_pack_16(const uint16_t *rows, int64_t stride, int64_t units, int64_t depth, int64_t gates, int64_t lanes,
                uint16_t *panels);
void fr_pack_8(const int8_t *rows, int64_t stride, int64_t units, int64_t depth, int64_t gates, int64_t lanes,
               int8_t *panels);

/* The number of weights that panels of a type, an fr_weight_type, hold for a unit that has `depth` of them. */
int64_t fr_panel_weights(int64_t weight_type, int64_t depth);

/*
 * Packs the transpose of a canonical matrix of `depth` rows of `columns` floats: its columns become the units of panels
 * [ceil(columns / lanes)][depth][lanes]. Strides, lanes and zeros are as in fr_pack.
 */
void fr_pack_transposed(const float *rows, int64_t stride, int64_t depth, int64_t columns, int64_t lanes,
                        float *panels);

/*
 * How `count` rows of `gates` gate blocks, 1 to 4, are cut into tiles, and for 0 how the one row of a stream is: the
 * four fields of fr_tiling in csrc/cells/product.h. For tests: Numba has the same rules.
 */
void fr_find_tiling(int64_t isa, int64_t type, int64_t gates, int64_t count, int64_t *tiling);

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
