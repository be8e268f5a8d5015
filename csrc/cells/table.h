/* Compiles every cell with the vocabulary that was included before and exports one symbol: the table. */
#include "kernel_table.h"

#include "cells/activations.h"
#include "cells/product.h"
#include "cells/slopes.h"

#include "cells/clockwork.h"
#include "cells/gru.h"
#include "cells/lstm.h"
#include "cells/rnn.h"

#include "cells/back.h"

#include "cells/gru_back.h"
#include "cells/lstm_back.h"
#include "cells/rnn_back.h"

#include "cells/probe.h"

#define FR_PASTE(a, b) a##b
#define FR_EXPAND(a, b) FR_PASTE(a, b)
#define FR_STRING(a) #a
#define FR_EXPAND_STRING(a) FR_STRING(a)

/* clang-format off */
const fr_kernel_table FR_EXPAND(fr_kernels_, FR_ISA) = {
    .isa = FR_EXPAND_STRING(FR_ISA),
    .lanes = VF_LANES,
    .tiling = fr_tiling_fields,
#define FR_MEMBER(cell) .cell = fr_##cell, .cell##_back = fr_##cell##_back,
    FR_CELLS(FR_MEMBER)
#undef FR_MEMBER
#define FR_MEMBER(activation) .activation = fr_##activation##_array,
    FR_ACTIVATIONS(FR_MEMBER)
#undef FR_MEMBER
#define FR_MEMBER(probe) .probe_##probe = fr_probe_##probe,
    FR_PROBES(FR_MEMBER)
#undef FR_MEMBER
};
/* clang-format on */
