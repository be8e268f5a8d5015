/*
 * Pasted by cffi above its wrapper, after Python.h: the API, and the one function that looks at a Python object.
 */
#include "fusedrnn.h"

/*
 * The public part of NumPy's array object (PyArrayObject_fields, unchanged from NumPy 1.7 to 2.x). Declared here
 * because it is all that is needed of NumPy's headers; fr_reads_arrays proves it against a real array before it is
 * relied on.
 */
typedef struct {
    PyObject_HEAD
    char *data;
    int nd;
    Py_ssize_t *dimensions;
    Py_ssize_t *strides;
    PyObject *base;
    PyObject *descr;
    int flags;
} fr_array;

enum { FR_ARRAY_C_CONTIGUOUS = 0x0001, FR_ARRAY_ALIGNED = 0x0100 };

/* No Python API is called and no count is touched: cffi has released the GIL, and the caller holds the array. */
bool fr_step_array(fr_stream *stream, uintptr_t array)
{
    const fr_array *x = (const fr_array *)array;
    const int wanted = FR_ARRAY_C_CONTIGUOUS | FR_ARRAY_ALIGNED;
    if ((uintptr_t)x->descr != stream->dtype || x->nd != 2 || x->dimensions[0] != stream->io.batch ||
        x->dimensions[1] != stream->inputs || (x->flags & wanted) != wanted)
        return true;
    /* y = step(y): the kernel reads x while it writes y. */
    const uintptr_t x_at = (uintptr_t)x->data, y_at = (uintptr_t)stream->io.y;
    const uintptr_t x_bytes = (uintptr_t)(stream->io.batch * stream->inputs) * sizeof(float);
    const uintptr_t y_bytes = (uintptr_t)(stream->io.batch * stream->io.y_row) * sizeof(float);
    if (x_at < y_at + y_bytes && y_at < x_at + x_bytes)
        return true;
    return fr_step_from(stream, (const float *)x->data);
}

bool fr_reads_arrays(uintptr_t array, const void *data, int64_t rows, int64_t columns, uintptr_t dtype)
{
    const fr_array *x = (const fr_array *)array;
    const int wanted = FR_ARRAY_C_CONTIGUOUS | FR_ARRAY_ALIGNED;
    return x->nd == 2 && (const void *)x->data == data && x->dimensions[0] == rows && x->dimensions[1] == columns &&
           (uintptr_t)x->descr == dtype && (x->flags & wanted) == wanted;
}
