/*
 * Pasted by cffi above its wrapper, after Python.h: the API, and the one function that looks at a Python object.
 */
#include "fusedrnn.h"

/*
 * The public beginning of NumPy's array and dtype objects (PyArrayObject_fields, PyArray_Descr; unchanged from
 * NumPy 1.7 to 2.x). Declared here because it is all that is needed of NumPy's headers; Python proves it on real
 * arrays, of this kind and of others, before it is relied on.
 */
typedef struct {
    PyObject_HEAD
    PyTypeObject *type;
    char kind;
    char letter;
    char byte_order;
    char flags;
    int number;
} fr_dtype;

typedef struct {
    PyObject_HEAD
    char *data;
    int nd;
    Py_ssize_t *dimensions;
    Py_ssize_t *strides;
    PyObject *base;
    fr_dtype *dtype;
    int flags;
} fr_array;

enum { FR_ARRAY_C_CONTIGUOUS = 0x0001, FR_ARRAY_ALIGNED = 0x0100, FR_FLOAT32 = 11 };

/* No Python API is called and no count is touched: cffi has released the GIL, and the caller holds the array. */
static bool is_float32(const fr_array *x, int64_t rows, int64_t columns)
{
    const int wanted = FR_ARRAY_C_CONTIGUOUS | FR_ARRAY_ALIGNED;
    return x->nd == 2 && x->dimensions[0] == rows && x->dimensions[1] == columns && (x->flags & wanted) == wanted &&
           x->dtype->number == FR_FLOAT32 && x->dtype->byte_order == '=';
}

int fr_step_array(fr_stream *stream, uintptr_t array)
{
    const fr_array *x = (const fr_array *)array;
    if (!is_float32(x, stream->io.batch, stream->inputs))
        return FR_OTHER_ARRAY;
    /* y = step(y): the kernel reads x while it writes y. */
    const uintptr_t x_at = (uintptr_t)x->data, y_at = (uintptr_t)stream->io.y;
    const uintptr_t x_bytes = (uintptr_t)(stream->io.batch * stream->inputs) * sizeof(float);
    const uintptr_t y_bytes = (uintptr_t)(stream->io.batch * stream->io.y_row) * sizeof(float);
    if (x_at < y_at + y_bytes && y_at < x_at + x_bytes)
        return FR_OTHER_ARRAY;
    return fr_step_from(stream, (const float *)x->data);
}

void fr_bind_arrays(fr_sequence *q, uintptr_t x_array, uintptr_t y_array, uintptr_t h_array, uintptr_t last_array,
                    bool counts)
{
    const fr_array *x = (const fr_array *)x_array, *y = (const fr_array *)y_array;
    const fr_array *h = (const fr_array *)h_array, *last = (const fr_array *)last_array;
    const Py_ssize_t item = (Py_ssize_t)sizeof(float);
    q->x = (const float *)x->data;
    q->x_step = x->strides[0] / item;
    q->x_row = x->strides[1] / item;
    q->y = (float *)y->data;
    q->y_step = y->strides[0] / item;
    q->y_row = y->strides[1] / item;
    q->h = (float *)h->data;
    q->c = last && !counts ? (float *)last->data : NULL;
    q->t = last && counts ? (int64_t *)last->data : NULL;
}

bool fr_reads_array(uintptr_t array, const void *data, int64_t rows, int64_t columns)
{
    const fr_array *x = (const fr_array *)array;
    return is_float32(x, rows, columns) && (const void *)x->data == data;
}
