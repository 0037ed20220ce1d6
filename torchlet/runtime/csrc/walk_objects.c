// Python's objects as the walk sees them: where their fields lie, their words, and what it takes to read and to make them.

#define TENSOR_FIELDS(X) \
    X(Tensor, _np) X(Tensor, _meta) X(Tensor, _store) X(Tensor, _run) X(Tensor, _step) X(Tensor, _node) X(Tensor, _out) X(Tensor, _grad) \
    X(Tensor, _hooks) X(Tensor, _base) X(Tensor, _ptr) X(Storage, version) X(Storage, sight) X(Storage, lent)

#define FIELDS(X) \
    X(Slot, t) X(Step, next) X(Step, functional) X(Step, op) X(Step, kind) X(Step, attrs) X(Step, checks) X(Step, known) \
    X(Step, fresh) X(Step, meta) X(Step, turns) X(Step, path) X(Step, after) X(Step, macros) X(Meta, shared) X(Constant, value) \
    X(Quiet, dead) X(Quiet, alive) X(Quiet, count) X(Quiet, program) X(Quiet, watched) X(Quiet, notes) X(Op, check) \
    X(Path, quiet) X(Path, launches) X(Path, used) X(Path, reasons) X(Path, slots) X(Path, scalar_count) X(Path, written_outside) \
    X(Macro, end) X(Macro, slots) X(Macro, made) X(Macro, olds) X(Macro, old_metas) X(Macro, accumulates)
#define OFFSET(type, name) static Py_ssize_t type##_##name;
TENSOR_FIELDS(OFFSET)
FIELDS(OFFSET)
#define FIELD(o, type, name) (*(PyObject **)((char *)(o) + type##_##name))

#define NAMES(X) \
    X(run) X(_run) X(last) X(_record_op) X(_launch) X(_lose) X(_turn) X(_turn_back) X(_accumulated_hooks) X(step) X(step_inplace) X(update) X(flush) X(follow_backward) X(inplace) X(grad) X(event) X(_default) X(float32) \
    X(is_plain) X(exported) X(launch) X(made) X(ask) X(_update) X(param_groups) X(params) X(bias) X(weight) X(_modules) X(_opt_called) X(MAX_PATHS) X(state) X(autocast) X(_execute) X(_hooked) X(forward) X(__dict__) X(passes) X(stepwise) X(_failure) X(_run_stepwise) X(abandon)
#define NAME(name) static PyObject *n_##name;
NAMES(NAME)
#undef NAME

static PyObject *Run, *Tensor, *Storage, *Constant, *STATE, *HELD;  // the Run of capture.py: the twins are its methods
static PyObject *dtypes;                                             // the names of torchlet.dtypes
static PyObject *zero, *one, *minus_one, *empty, *call_ended, *default_dtype, *keywords;  // keywords: ("last",)
static Py_ssize_t seen_more;  // what getrefcount in a map() counts in addition to the reference in a slot

static int offset_of(PyObject *type, const char *name, Py_ssize_t *offset) {
    PyObject *d = PyObject_GetAttrString(type, name);
    int good = d && Py_IS_TYPE(d, &PyMemberDescr_Type);
    if (good) *offset = ((PyMemberDescrObject *)d)->d_member->offset;
    Py_XDECREF(d);
    if (d && !good) PyErr_Format(PyExc_TypeError, "walk: %s is no slot", name);
    return good ? 0 : -1;
}

static inline void set(PyObject **place, PyObject *value) {
    PyObject *before = *place;
    *place = Py_NewRef(value);
    Py_XDECREF(before);
}

// an attribute that its owner keeps alive, as a borrowed reference; null with an exception
static inline PyObject *look(PyObject *o, PyObject *name) {
    PyObject *value = PyObject_GetAttr(o, name);
    Py_XDECREF(value);
    return value;
}

// what STATE, a threading.local, says in this thread: its dictionary here, which is asked for when another thread comes
static PyObject *state_here(void) {
    static PyObject *dict;
    static uint64_t thread;  // thread states count from 1
    uint64_t now = PyThreadState_GetID(PyThreadState_Get());
    if (now == thread) return dict;
    PyObject *found = PyObject_GetAttr(STATE, n___dict__);
    if (!found) return NULL;
    thread = now;
    Py_XSETREF(dict, found);
    return found;
}

// an attribute of STATE, borrowed; null with an exception
static PyObject *get_state(PyObject *name) {
    PyObject *dict = state_here(), *value = dict ? PyDict_GetItemWithError(dict, name) : NULL;
    return value || PyErr_Occurred() ? value : look(STATE, name);  // the class says what no thread has said
}

static int set_state(PyObject *name, PyObject *value) {
    PyObject *dict = state_here();
    return dict ? PyDict_SetItem(dict, name, value) : -1;
}

static int add_to(PyObject **place, PyObject *n) {
    PyObject *after = PyNumber_Add(*place, n);
    if (!after) return -1;
    Py_XSETREF(*place, after);
    return 0;
}

static inline int is_tensor(PyObject *x) { return PyObject_TypeCheck(x, (PyTypeObject *)Tensor); }

static inline int is_pending(PyObject *t) { return !FIELD(t, Tensor, _np) || FIELD(t, Tensor, _np) == Py_None; }

// the storage of what may be a tensor, borrowed; NULL, without an exception, where there is none
static inline PyObject *store_of(PyObject *x) {
    PyObject *store = is_tensor(x) ? FIELD(x, Tensor, _store) : NULL;
    return store && (PyObject *)Py_TYPE(store) == Storage ? store : NULL;
}

static int is_exported(PyObject *t) {
    PyObject *store = store_of(t);
    if (!store || !FIELD(store, Storage, sight) || !FIELD(store, Storage, lent)) return 1;
    if (FIELD(store, Storage, sight) == Py_None && FIELD(store, Storage, lent) == Py_None) return 0;
    PyObject *exported = PyObject_GetAttr(store, n_exported);
    if (!exported) PyErr_Clear();
    int is = exported != Py_False;
    Py_XDECREF(exported);
    return is;
}

// a pending tensor: what `new` fills, and what Run._place gives it
static PyObject *fresh_tensor(PyObject *run, PyObject *step, PyObject *meta) {
    PyObject *t = ((PyTypeObject *)Tensor)->tp_alloc((PyTypeObject *)Tensor, 0);
    PyObject *store = t ? ((PyTypeObject *)Storage)->tp_alloc((PyTypeObject *)Storage, 0) : NULL;
    if (!store) {
        Py_XDECREF(t);
        return NULL;
    }
    FIELD(store, Storage, version) = Py_NewRef(zero);
    FIELD(store, Storage, sight) = Py_NewRef(Py_None);
    FIELD(store, Storage, lent) = Py_NewRef(Py_None);
    FIELD(t, Tensor, _store) = store;
    FIELD(t, Tensor, _run) = Py_NewRef(run);
    FIELD(t, Tensor, _step) = Py_NewRef(step);
    FIELD(t, Tensor, _meta) = Py_NewRef(meta);
    FIELD(t, Tensor, _out) = Py_NewRef(zero);
    FIELD(t, Tensor, _ptr) = Py_NewRef(zero);
    FIELD(t, Tensor, _np) = Py_NewRef(Py_None);
    FIELD(t, Tensor, _node) = Py_NewRef(Py_None);
    FIELD(t, Tensor, _grad) = Py_NewRef(Py_None);
    FIELD(t, Tensor, _hooks) = Py_NewRef(Py_None);
    FIELD(t, Tensor, _base) = Py_NewRef(Py_None);
    return t;
}

// know(Tensor, Storage): where their fields lie. A program may be made before the first walk
static PyObject *know(PyObject *module, PyObject *classes) {
    if (!PyArg_ParseTuple(classes, "OO", &Tensor, &Storage)) return NULL;
    Py_INCREF(Tensor);
    Py_INCREF(Storage);
#define READ(type, name) if (offset_of(type, #name, &type##_##name)) return NULL;
    TENSOR_FIELDS(READ)
    Py_RETURN_NONE;
}

// setup(names): the classes and objects of capture.py that the walk has to know
static PyObject *setup(PyObject *module, PyObject *names) {
    PyObject *Slot, *Step, *Meta, *Quiet, *Macro, *Path, *Op;
    if (!PyArg_ParseTuple(names, "OOOOOOOOOOOOOOn", &Run, &Tensor, &Storage, &STATE, &HELD, &Slot, &Step, &Meta, &Constant, &Quiet, &Macro,
                          &Path, &Op, &dtypes, &seen_more))
        return NULL;
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(names); i++) Py_INCREF(PyTuple_GET_ITEM(names, i));  // for good
    FIELDS(READ)
    Py_RETURN_NONE;
}
