/* Pasted by cffi above its wrapper: the C API. */
#include "fusedrnn.h"
