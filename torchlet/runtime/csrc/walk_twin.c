// A function in C in the place of one in Python, of which it does the common case; whoever asks what it is, is told of the Python.

typedef struct {
    PyObject_HEAD
    vectorcallfunc call;
    PyObject *plain;        // the Python it stands for
    PyObject *op, *other;   // what else its kind knows: operators
    int n, first, reflected;
} Twin;

static vectorcallfunc kind_of(const char *name);

// what is not the common case
static inline PyObject *by_plain(PyObject *self, PyObject *const *args, size_t nargsf, PyObject *kwnames) {
    return PyObject_Vectorcall(((Twin *)self)->plain, args, nargsf, kwnames);
}

static PyObject *twin_get(PyObject *self, PyObject *object, PyObject *type) {
    return object ? PyMethod_New(self, object) : Py_NewRef(self);
}

static PyObject *twin_attribute(PyObject *self, PyObject *name) {
    static const char *own[] = {"__class__", "__get__", "__call__", "__reduce__", "__reduce_ex__", "__wrapped__", NULL};
    for (int i = 0; own[i]; i++)
        if (PyUnicode_CompareWithASCIIString(name, own[i]) == 0) return PyObject_GenericGetAttr(self, name);
    return PyObject_GetAttr(((Twin *)self)->plain, name);
}

static PyObject *twin_repr(PyObject *self) { return PyObject_Repr(((Twin *)self)->plain); }

static PyObject *twin_reduce(PyObject *self, PyObject *unused) { return PyObject_GetAttrString(((Twin *)self)->plain, "__qualname__"); }

static int twin_traverse(Twin *t, visitproc visit, void *arg) {
    Py_VISIT(t->plain);
    Py_VISIT(t->op);
    Py_VISIT(t->other);
    return 0;
}

static int twin_clear(Twin *t) {
    Py_CLEAR(t->plain);
    Py_CLEAR(t->op);
    Py_CLEAR(t->other);
    return 0;
}

static void twin_dealloc(Twin *t) {
    PyObject_GC_UnTrack(t);
    twin_clear(t);
    Py_TYPE(t)->tp_free(t);
}

// Twin(kind, plain, op=None, other=None, n=0, first=0, reflected=False)
static PyObject *twin_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    const char *kind;
    PyObject *plain, *op = Py_None, *other = Py_None;
    int n = 0, first = 0, reflected = 0;
    if (!PyArg_ParseTuple(args, "sO|OOiip", &kind, &plain, &op, &other, &n, &first, &reflected)) return NULL;
    Twin *t = (Twin *)type->tp_alloc(type, 0);
    if (!t) return NULL;
    t->plain = Py_NewRef(plain), t->op = Py_NewRef(op), t->other = Py_NewRef(other), t->n = n, t->first = first, t->reflected = reflected;
    if ((t->call = kind_of(kind))) return (PyObject *)t;
    Py_DECREF(t);
    return PyErr_Format(PyExc_ValueError, "Twin: there is no %s", kind);
}

static PyMethodDef twin_methods[] = {{"__reduce__", twin_reduce, METH_NOARGS, NULL}, {NULL}};
static PyMemberDef twin_members[] = {{"__wrapped__", T_OBJECT_EX, offsetof(Twin, plain), READONLY, NULL}, {NULL}};

static PyTypeObject TwinType = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "torchlet_walk.Twin",
    .tp_basicsize = sizeof(Twin),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_HAVE_VECTORCALL | Py_TPFLAGS_METHOD_DESCRIPTOR,
    .tp_vectorcall_offset = offsetof(Twin, call),
    .tp_call = PyVectorcall_Call,
    .tp_descr_get = twin_get,
    .tp_getattro = twin_attribute,
    .tp_repr = twin_repr,
    .tp_methods = twin_methods,
    .tp_members = twin_members,
    .tp_traverse = (traverseproc)twin_traverse,
    .tp_clear = (inquiry)twin_clear,
    .tp_dealloc = (destructor)twin_dealloc,
    .tp_new = twin_new,
};
