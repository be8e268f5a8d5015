/*
 * The Python module fusedrnn._arrays, in the same library as cffi's fusedrnn._native: what must look at Python objects
 * while the GIL is held, or must not be interrupted between two of its actions.
 *
 * cffi releases the GIL before it calls C. Whoever reads the header of a NumPy array then (its shape, its strides) may
 * read memory that another thread has just freed with `x.shape = ...`. The functions here read headers first, and
 * release the GIL for the kernels alone, which are given bare pointers.
 */
#include <Python.h>

#include "fusedrnn.h"

#include <string.h>

/* ---- NumPy's arrays --------------------------------------------------------------------------------------------- */

/*
 * The public beginning of NumPy's array and dtype objects (PyArrayObject_fields, PyArray_Descr; unchanged from
 * NumPy 1.7 to 2.x). Declared here because it is all that is needed of NumPy's headers; Python asks for CPython and a
 * known NumPy, and then proves it on real arrays, of this kind and of others, before it is relied on.
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

enum {
    FR_ARRAY_C_CONTIGUOUS = 0x0001,
    FR_ARRAY_ALIGNED = 0x0100,
    FR_ARRAY_WRITEABLE = 0x0400,
    FR_INT64 = 7,
    FR_FLOAT32 = 11
};
enum { MAX_AXES = 3 };

typedef struct {
    int axes;
    Py_ssize_t lengths[MAX_AXES];
} fr_shape;

static PyTypeObject *array_type; /* numpy.ndarray */
static PyObject *busy_error;     /* fusedrnn.errors.StreamBusyError */

/* The array, if it is exactly an ndarray: C-contiguous, aligned, of this dtype and shape. Or NULL. */
static const fr_array *plain_array(PyObject *object, int dtype, const fr_shape *shape)
{
    const int wanted = FR_ARRAY_C_CONTIGUOUS | FR_ARRAY_ALIGNED;
    if (Py_TYPE(object) != array_type)
        return NULL;
    const fr_array *array = (const fr_array *)object;
    if (array->nd != shape->axes || (array->flags & wanted) != wanted || array->dtype->number != dtype ||
        array->dtype->byte_order != '=')
        return NULL;
    for (int axis = 0; axis < shape->axes; axis++)
        if (array->dimensions[axis] != shape->lengths[axis])
            return NULL;
    return array;
}

static Py_ssize_t elements(const fr_shape *shape)
{
    Py_ssize_t product = 1;
    for (int axis = 0; axis < shape->axes; axis++)
        product *= shape->lengths[axis];
    return product;
}

static bool read_shape(PyObject *tuple, fr_shape *shape)
{
    const Py_ssize_t axes = PyTuple_Size(tuple);
    if (axes < 0)
        return false;
    if (axes > MAX_AXES) {
        PyErr_SetString(PyExc_ValueError, "too many axes");
        return false;
    }
    shape->axes = (int)axes;
    for (int axis = 0; axis < shape->axes; axis++)
        shape->lengths[axis] = PyLong_AsSsize_t(PyTuple_GetItem(tuple, axis));
    return !PyErr_Occurred();
}

/* reads(array, data, shape): whether the array is a plain float32 one of that shape whose data lie at that address. */
static PyObject *reads(PyObject *module, PyObject *args)
{
    (void)module;
    PyObject *object, *tuple;
    unsigned long long data;
    fr_shape shape;
    if (!PyArg_ParseTuple(args, "OKO!", &object, &data, &PyTuple_Type, &tuple) || !read_shape(tuple, &shape))
        return NULL;
    const fr_array *array = plain_array(object, FR_FLOAT32, &shape);
    return PyBool_FromLong(array && (uintptr_t)array->data == (uintptr_t)data);
}

/*
 * bind(sequence, x, y, h, last, counts): points an fr_sequence, given by its address, to arrays that Python has checked
 * and that nobody else can reach: x (T, B, X) and y (T, B, D * R), float32 without gaps in the last axis, aligned, of
 * any strides in the other axes; h, and the last state if it is not None, without gaps: t if it counts, else c.
 */
static PyObject *bind(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    (void)module;
    if (count != 6)
        return PyErr_Format(PyExc_TypeError, "bind takes 6 arguments");
    fr_sequence *q = PyLong_AsVoidPtr(args[0]);
    if (!q)
        return NULL;
    const fr_array *x = (const fr_array *)args[1], *y = (const fr_array *)args[2], *h = (const fr_array *)args[3];
    const fr_array *last = args[4] == Py_None ? NULL : (const fr_array *)args[4];
    const bool counts = args[5] == Py_True;
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
    Py_RETURN_NONE;
}

/* ---- whole calls ------------------------------------------------------------------------------------------------ */

/* A call of one shape, bound but for the addresses of its arrays. Owned by Python, like what it points to. */
typedef struct {
    const fr_plan *plan;
    fr_sequence *q;
    PyTypeObject *state_type; /* the layer's named tuple */
    fr_shape x, y, h, last;
    int states;     /* number of states: 1, or 2 with `last` */
    int last_dtype; /* FR_INT64 for a counter, else FR_FLOAT32 */
} fr_plain_call;

/* Copies a state to a new array. False if it is not a plain one, or if a counter could wrap. */
static bool take_state(PyObject *given, PyObject *after, int dtype, const fr_shape *shape)
{
    const fr_array *from = plain_array(given, dtype, shape);
    if (!from)
        return false;
    const Py_ssize_t count = elements(shape);
    char *to = ((const fr_array *)after)->data;
    memcpy(to, from->data, (size_t)count * (dtype == FR_INT64 ? sizeof(int64_t) : sizeof(float)));
    for (Py_ssize_t k = 0; dtype == FR_INT64 && k < count; k++)
        if (((const int64_t *)to)[k] < 0 || ((const int64_t *)to)[k] >= INT64_C(1) << 62)
            return false;
    return true;
}

/* Whether two plain float32 arrays share memory. */
static bool overlap(const float *a, Py_ssize_t a_count, const float *b, Py_ssize_t b_count)
{
    const uintptr_t a_at = (uintptr_t)a, b_at = (uintptr_t)b;
    return a_at < b_at + (uintptr_t)b_count * sizeof(float) && b_at < a_at + (uintptr_t)a_count * sizeof(float);
}

/*
 * run(x, state, y, h[, last]): runs the call, if x, y and the arrays of the state are plain ones of its shape. y is a
 * new array, or one that the caller gave, which must be writable and apart from x. h and last are new arrays of the
 * right shapes, which nobody else has, for the state after the call; they hold zeros if the state is None. True; or
 * False, and nothing computed: Python's check then says what is wrong, or makes a copy.
 */
static PyObject *run_plain(PyObject *self, PyObject *const *args, Py_ssize_t count)
{
    const fr_plain_call *call = PyCapsule_GetPointer(self, NULL);
    if (!call || count != 3 + call->states)
        return PyErr_Format(PyExc_TypeError, "run takes x, state, y and an array for each state");
    PyObject *state = args[1];
    const fr_array *x = plain_array(args[0], FR_FLOAT32, &call->x);
    const fr_array *y = plain_array(args[2], FR_FLOAT32, &call->y);
    if (!x || !y || !(y->flags & FR_ARRAY_WRITEABLE) ||
        overlap((const float *)x->data, elements(&call->x), (const float *)y->data, elements(&call->y)))
        Py_RETURN_FALSE;
    if (state != Py_None) {
        if ((Py_TYPE(state) != call->state_type && Py_TYPE(state) != &PyTuple_Type) ||
            PyTuple_Size(state) != call->states)
            Py_RETURN_FALSE;
        if (!take_state(PyTuple_GetItem(state, 0), args[3], FR_FLOAT32, &call->h))
            Py_RETURN_FALSE;
        if (call->states > 1 && !take_state(PyTuple_GetItem(state, 1), args[4], call->last_dtype, &call->last))
            Py_RETURN_FALSE;
    }
    fr_sequence *q = call->q;
    q->x = (const float *)x->data;
    q->y = (float *)y->data;
    q->h = (float *)((const fr_array *)args[3])->data;
    void *last = call->states > 1 ? ((const fr_array *)args[4])->data : NULL;
    q->c = call->last_dtype == FR_FLOAT32 ? last : NULL;
    q->t = call->last_dtype == FR_INT64 ? last : NULL;
    Py_BEGIN_ALLOW_THREADS fr_run(call->plan, q);
    Py_END_ALLOW_THREADS Py_RETURN_TRUE;
}

static void free_plain_call(PyObject *capsule)
{
    fr_plain_call *call = PyCapsule_GetPointer(capsule, NULL);
    Py_XDECREF((PyObject *)call->state_type);
    PyMem_Free(call);
}

static PyMethodDef run_method = {"run", (PyCFunction)(void (*)(void))run_plain, METH_FASTCALL, NULL};

/*
 * plain_call(plan, sequence, state_type, x, y, h, last, counts): the function `run` for a plan and a bound sequence,
 * given by their addresses, and the shapes of arrays; last is () for a cell with one state. The caller keeps plan and
 * sequence alive, and has one thread at a time in the function.
 */
static PyObject *plain_call(PyObject *module, PyObject *args)
{
    (void)module;
    unsigned long long plan, sequence;
    PyObject *state_type, *x, *y, *h, *last;
    int counts;
    if (!PyArg_ParseTuple(args, "KKOO!O!O!O!p", &plan, &sequence, &state_type, &PyTuple_Type, &x, &PyTuple_Type, &y,
                          &PyTuple_Type, &h, &PyTuple_Type, &last, &counts))
        return NULL;
    fr_plain_call *call = PyMem_Calloc(1, sizeof *call);
    if (!call)
        return PyErr_NoMemory();
    PyObject *capsule = PyCapsule_New(call, NULL, free_plain_call);
    if (!capsule) {
        PyMem_Free(call);
        return NULL;
    }
    Py_INCREF(state_type);
    call->state_type = (PyTypeObject *)state_type;
    call->plan = (const fr_plan *)(uintptr_t)plan;
    call->q = (fr_sequence *)(uintptr_t)sequence;
    call->last_dtype = counts ? FR_INT64 : FR_FLOAT32;
    PyObject *run = NULL;
    if (read_shape(x, &call->x) && read_shape(y, &call->y) && read_shape(h, &call->h) &&
        read_shape(last, &call->last)) {
        call->states = call->last.axes ? 2 : 1;
        run = PyCFunction_New(&run_method, capsule);
    }
    Py_DECREF(capsule);
    return run;
}

/* ---- streams ---------------------------------------------------------------------------------------------------- */

/* A stream, or a group of streams, and the array that its steps return. */
typedef struct {
    fr_stream *stream;
    PyObject *output;
    fr_shape x, y;
} fr_stepper;

/*
 * step(x): one step from an array, or from the bound input buffer if x is None: an fr_status. FR_OTHER_ARRAY unless x
 * is a plain array of shape (B, X) that does not overlap y: Python then says what is wrong with it, or copies it.
 * FR_OTHER_OUTPUT: the step is done, but somebody has given the returned array another shape.
 */
static PyObject *step(PyObject *self, PyObject *object)
{
    const fr_stepper *stepper = PyCapsule_GetPointer(self, NULL);
    if (!stepper)
        return NULL;
    fr_stream *stream = stepper->stream;
    const float *x = stream->io.x;
    const uintptr_t y_at = (uintptr_t)stream->io.y;
    if (object != Py_None) {
        const fr_array *array = plain_array(object, FR_FLOAT32, &stepper->x);
        if (!array)
            return PyLong_FromLong(FR_OTHER_ARRAY);
        x = (const float *)array->data;
        /* y = step(y): the kernel reads x while it writes y. */
        if (overlap(x, elements(&stepper->x), stream->io.y, elements(&stepper->y)))
            return PyLong_FromLong(FR_OTHER_ARRAY);
    }
    int status;
    Py_BEGIN_ALLOW_THREADS status = fr_step_from(stream, x);
    Py_END_ALLOW_THREADS if (status == FR_OK)
    {
        const fr_array *output = plain_array(stepper->output, FR_FLOAT32, &stepper->y);
        if (!output || (uintptr_t)output->data != y_at)
            status = FR_OTHER_OUTPUT;
    }
    return PyLong_FromLong(status);
}

static void free_stepper(PyObject *capsule)
{
    fr_stepper *stepper = PyCapsule_GetPointer(capsule, NULL);
    Py_XDECREF(stepper->output);
    PyMem_Free(stepper);
}

static PyMethodDef step_method = {"step", step, METH_O, NULL};

/* stepper(stream, output, x, y): the function `step` for a stream, given by its address, the array that its steps
 * return, and the shapes (B, X) and (B, R). The caller keeps the stream alive. */
static PyObject *stepper(PyObject *module, PyObject *args)
{
    (void)module;
    unsigned long long stream;
    PyObject *output, *x, *y;
    if (!PyArg_ParseTuple(args, "KOO!O!", &stream, &output, &PyTuple_Type, &x, &PyTuple_Type, &y))
        return NULL;
    fr_stepper *made = PyMem_Calloc(1, sizeof *made);
    if (!made)
        return PyErr_NoMemory();
    PyObject *capsule = PyCapsule_New(made, NULL, free_stepper);
    if (!capsule) {
        PyMem_Free(made);
        return NULL;
    }
    Py_INCREF(output);
    made->output = output;
    made->stream = (fr_stream *)(uintptr_t)stream;
    PyObject *function =
        read_shape(x, &made->x) && read_shape(y, &made->y) ? PyCFunction_New(&step_method, capsule) : NULL;
    Py_DECREF(capsule);
    return function;
}

/*
 * hold(stream, message, function): function(), while the stream is taken for it: or StreamBusyError with that message
 * if another thread has the stream. No interrupt can come between taking the stream and being sure to release it, as it
 * can in Python, where it would leave the stream busy for ever.
 */
static PyObject *hold(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    (void)module;
    if (count != 3)
        return PyErr_Format(PyExc_TypeError, "hold takes a stream, a message and a function");
    fr_stream *stream = PyLong_AsVoidPtr(args[0]);
    if (!stream)
        return NULL;
    if (fr_stream_take(stream) != FR_OK) {
        PyErr_SetObject(busy_error, args[1]);
        return NULL;
    }
    PyObject *result = PyObject_CallObject(args[2], NULL);
    fr_stream_release(stream);
    return result;
}

/* ---- the module ------------------------------------------------------------------------------------------------- */

/* set_types(ndarray, StreamBusyError): called once, before anything else. */
static PyObject *set_types(PyObject *module, PyObject *args)
{
    (void)module;
    PyObject *array, *busy;
    if (!PyArg_ParseTuple(args, "O!O", &PyType_Type, &array, &busy))
        return NULL;
    Py_INCREF(array);
    Py_INCREF(busy);
    array_type = (PyTypeObject *)array;
    busy_error = busy;
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"set_types", set_types, METH_VARARGS, NULL},
    {"reads", reads, METH_VARARGS, NULL},
    {"bind", (PyCFunction)(void (*)(void))bind, METH_FASTCALL, NULL},
    {"plain_call", plain_call, METH_VARARGS, NULL},
    {"stepper", stepper, METH_VARARGS, NULL},
    {"hold", (PyCFunction)(void (*)(void))hold, METH_FASTCALL, NULL},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    .m_base = PyModuleDef_HEAD_INIT, .m_name = "fusedrnn._arrays", .m_size = -1, .m_methods = methods};

PyMODINIT_FUNC PyInit__arrays(void) { return PyModule_Create(&definition); }
