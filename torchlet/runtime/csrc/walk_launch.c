// The launch of a program, the twin of host.py: addresses in, one native call, arrays out.

typedef int (*native)(void *);

typedef struct {
    PyObject_HEAD
    vectorcallfunc call;
    PyObject *inputs;      // list of slots
    PyObject *pools;       // list of (entries, take), or None for an output that is written into an input
    PyObject *indices;     // tuple of int: the numbers that are used
    PyObject *written;     // list of (slot, how often)
    PyObject *bound;       // list of (slot, output, used up or None)
    PyObject *address, *arena, *move, *nothing, *pack, *fail;
    PyObject *owner;       // keeps the native memory alive
    const char *kinds;     // of the numbers: d or q
    uint64_t *pointers;
    union { int64_t q; double d; } *scalars;
    void *argument;
    native function;
    uint64_t thread;       // whose arena the temporaries lie in
    int returns, brief;
    Py_ssize_t addresses;  // how many
    struct { PyObject *number; uint64_t value; } *known;  // the addresses of the last launch: most of them come again, as the same objects
} Launch;

#define LAUNCH_OBJECTS(X) X(inputs) X(pools) X(indices) X(written) X(bound) X(address) X(arena) X(move) X(nothing) X(pack) X(fail) X(owner)

static int launch_traverse(Launch *l, visitproc visit, void *arg) {
#define VISIT_PART(name) Py_VISIT(l->name);
    LAUNCH_OBJECTS(VISIT_PART)
    return 0;
}

static int launch_clear(Launch *l) {
#define CLEAR_PART(name) Py_CLEAR(l->name);
    LAUNCH_OBJECTS(CLEAR_PART)
    return 0;
}

static void launch_dealloc(Launch *l) {
    PyObject_GC_UnTrack(l);
    for (Py_ssize_t i = 0; i < l->addresses; i++) Py_XDECREF(l->known[i].number);
    PyMem_Free(l->known);
    launch_clear(l);
    Py_TYPE(l)->tp_free(l);
}

// the numbers that are used, as the kernels read them
static int pack_numbers(Launch *l, PyObject *numbers) {
    Py_ssize_t n = PyTuple_GET_SIZE(l->indices);
    for (Py_ssize_t i = 0; i < n; i++) {
        Py_ssize_t index = PyLong_AsSsize_t(PyTuple_GET_ITEM(l->indices, i));
        if (index >= PyList_GET_SIZE(numbers)) return PyErr_SetString(PyExc_IndexError, "list index out of range"), -1;
        PyObject *x = PyList_GET_ITEM(numbers, index);
        if (l->kinds[i] == 'd' && PyFloat_CheckExact(x)) {
            l->scalars[i].d = PyFloat_AS_DOUBLE(x);
            continue;
        }
        int overflow = 1;
        if (l->kinds[i] == 'q' && PyLong_Check(x)) l->scalars[i].q = PyLong_AsLongLongAndOverflow(x, &overflow);
        if (!overflow) continue;
        PyObject *used = PyTuple_New(n);  // struct converts the rest, or says what is wrong
        if (!used) return -1;
        for (Py_ssize_t k = 0; k < n; k++) {
            PyObject *value = PySequence_GetItem(numbers, PyLong_AsSsize_t(PyTuple_GET_ITEM(l->indices, k)));
            if (!value) return Py_DECREF(used), -1;
            PyTuple_SET_ITEM(used, k, value);
        }
        PyObject *done = PyObject_CallObject(l->pack, used);
        Py_DECREF(used);
        Py_XDECREF(done);
        return done ? 0 : -1;
    }
    return 0;
}

// pointer i is this number; one that is 0 has to be asked for
static int put_address(Launch *l, Py_ssize_t i, PyObject *number) {
    if (l->known[i].number != number) {
        uint64_t value = PyLong_AsUnsignedLongLong(number);
        if (value == (uint64_t)-1 && PyErr_Occurred()) return -1;
        l->known[i].value = value;
        Py_XSETREF(l->known[i].number, Py_NewRef(number));
    }
    l->pointers[i] = l->known[i].value;
    return 0;
}

// the addresses of the inputs
static int pack_inputs(Launch *l) {
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(l->inputs); i++) {
        PyObject *t = FIELD(PyList_GET_ITEM(l->inputs, i), Slot, t), *p = is_tensor(t) ? FIELD(t, Tensor, _ptr) : NULL;
        if (p && put_address(l, i, p)) return -1;
        if (p && l->pointers[i]) continue;
        p = PyObject_CallOneArg(l->address, t);
        int failed = !p || put_address(l, i, p);
        Py_XDECREF(p);
        if (failed) return -1;
    }
    return 0;
}

// an output array that nobody holds, of each pool; the addresses stand behind those of the inputs
static int take_outputs(Launch *l, PyObject **entries) {
    Py_ssize_t first = PyList_GET_SIZE(l->inputs);
    for (Py_ssize_t k = 0; k < PyList_GET_SIZE(l->pools); k++) {
        PyObject *pool = PyList_GET_ITEM(l->pools, k);
        l->pointers[first + k] = 0;
        if (pool == Py_None) continue;
        PyObject *entry = PyList_GET_ITEM(PyTuple_GET_ITEM(pool, 0), 0);
        entries[k] = Py_REFCNT(PyTuple_GET_ITEM(entry, 0)) == 1 ? Py_NewRef(entry) : PyObject_CallNoArgs(PyTuple_GET_ITEM(pool, 1));
        if (!entries[k]) return -1;
        if (put_address(l, first + k, PyTuple_GET_ITEM(entries[k], 1))) return -1;
    }
    return 0;
}

// temporaries lie in the arena of the thread that calls
static int settle(Launch *l) {
    uint64_t thread = PyThreadState_GetID(PyThreadState_Get());
    if (thread == l->thread || l->arena == Py_None) return 0;
    PyObject *base = PyObject_CallNoArgs(l->arena), *moved = base ? PyObject_CallOneArg(l->move, base) : NULL;
    Py_XDECREF(base);
    Py_XDECREF(moved);
    if (moved) l->thread = thread;
    return moved ? 0 : -1;
}

// overwritten inputs are newer, visible tensors have their arrays
static int bind(Launch *l, PyObject **entries) {
    long long known = -1, version;
    PyObject *often = NULL, *next = NULL;  // most tensors have been written as often as the one before: they share a number
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(l->written); i++) {
        PyObject *pair = PyList_GET_ITEM(l->written, i), *store = store_of(FIELD(PyTuple_GET_ITEM(pair, 0), Slot, t));
        if (!store) return Py_XDECREF(next), PyErr_SetString(PyExc_TypeError, "launch: an overwritten input is no tensor"), -1;
        version = PyLong_AsLongLong(FIELD(store, Storage, version));
        if (version != known || often != PyTuple_GET_ITEM(pair, 1)) {
            known = version, often = PyTuple_GET_ITEM(pair, 1);
            Py_XSETREF(next, PyErr_Occurred() ? NULL : PyLong_FromLongLong(version + PyLong_AsLongLong(often)));
            if (!next) return -1;
        }
        set(&FIELD(store, Storage, version), next);
    }
    Py_XDECREF(next);
    for (Py_ssize_t j = 0; j < PyList_GET_SIZE(l->bound); j++) {
        PyObject *row = PyList_GET_ITEM(l->bound, j), *slot = PyTuple_GET_ITEM(row, 0), *used_up = PyTuple_GET_ITEM(row, 2);
        PyObject *entry = entries[PyLong_AsSsize_t(PyTuple_GET_ITEM(row, 1))], *t = FIELD(slot, Slot, t);
        if (!is_tensor(t)) return PyErr_SetString(PyExc_TypeError, "launch: an output is no tensor"), -1;
        set(&FIELD(t, Tensor, _np), PyTuple_GET_ITEM(entry, 0));
        set(&FIELD(t, Tensor, _ptr), PyTuple_GET_ITEM(entry, 1));
        if (used_up != Py_None) {
            set(&FIELD(t, Tensor, _node), used_up);
            set(&FIELD(t, Tensor, _out), zero);
        }
        set(&FIELD(slot, Slot, t), Py_None);
    }
    return 0;
}

static PyObject *launch_call(PyObject *self, PyObject *const *args, size_t nargsf, PyObject *kwnames) {
    Launch *l = (Launch *)self;
    if (PyVectorcall_NARGS(nargsf) != 1 || kwnames || !PyList_Check(args[0])) {
        PyErr_SetString(PyExc_TypeError, "launch(numbers)");
        return NULL;
    }
    Py_ssize_t n = PyList_GET_SIZE(l->pools);
    PyObject *few[8] = {NULL}, **entries = n <= 8 ? few : PyMem_Calloc(n, sizeof *entries), *out = NULL;
    if (!entries) return PyErr_NoMemory();
    if (pack_inputs(l) || take_outputs(l, entries) || settle(l) || pack_numbers(l, args[0])) goto end;
    int failed;
    if (l->brief) {  // it is over before another thread would have begun
        failed = l->function(l->argument);
    } else {
        Py_BEGIN_ALLOW_THREADS
        failed = l->function(l->argument);
        Py_END_ALLOW_THREADS
    }
    if (failed) {
        Py_XDECREF(PyObject_CallNoArgs(l->fail));
        if (PyErr_Occurred()) goto end;
    }
    if (bind(l, entries)) goto end;
    if (!l->returns) {
        out = Py_NewRef(Py_None);
    } else if ((out = PyList_New(n))) {
        for (Py_ssize_t k = 0; k < n; k++) PyList_SET_ITEM(out, k, Py_NewRef(entries[k] ? entries[k] : l->nothing));
    }
end:
    for (Py_ssize_t k = 0; k < n; k++) Py_XDECREF(entries[k]);
    if (entries != few) PyMem_Free(entries);
    return out;
}

static PyObject *launch_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"inputs", "pools", "indices", "kinds", "written", "bound", "returns", "address", "arena", "move", "nothing", "pack",
                            "fail", "owner", "pointers", "scalars", "argument", "function", "brief", NULL};
    PyObject *inputs, *pools, *indices, *written, *bound, *address, *arena, *move, *nothing, *pack, *fail, *owner, *kinds;
    unsigned long long pointers, scalars, argument, function;
    int returns, brief;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O!O!O!UO!O!pOOOOOOOKKKKp", names, &PyList_Type, &inputs, &PyList_Type, &pools, &PyTuple_Type,
                                     &indices, &kinds, &PyList_Type, &written, &PyList_Type, &bound, &returns, &address, &arena, &move, &nothing,
                                     &pack, &fail, &owner, &pointers, &scalars, &argument, &function, &brief))
        return NULL;
    if (!Slot_t && PyList_GET_SIZE(inputs) + PyList_GET_SIZE(bound)) {  // a program may be made before the first walk
        PyObject *slot = PyList_GET_SIZE(inputs) ? PyList_GET_ITEM(inputs, 0) : PyTuple_GET_ITEM(PyList_GET_ITEM(bound, 0), 0);
        if (offset_of((PyObject *)Py_TYPE(slot), "t", &Slot_t)) return NULL;
    }
    PyObject *kept = Py_BuildValue("(OO)", owner, kinds);
    Launch *l = kept ? (Launch *)type->tp_alloc(type, 0) : NULL;
    if (!l) return NULL;
    l->addresses = PyList_GET_SIZE(inputs) + PyList_GET_SIZE(pools);
    l->known = PyMem_Calloc(l->addresses + 1, sizeof *l->known);
    if (!l->known) {
        l->addresses = 0;
        Py_DECREF(kept);
        Py_DECREF(l);
        return PyErr_NoMemory();
    }
    l->call = launch_call;
    l->inputs = Py_NewRef(inputs), l->pools = Py_NewRef(pools), l->indices = Py_NewRef(indices), l->written = Py_NewRef(written);
    l->bound = Py_NewRef(bound), l->address = Py_NewRef(address), l->arena = Py_NewRef(arena), l->move = Py_NewRef(move), l->nothing = Py_NewRef(nothing);
    l->pack = Py_NewRef(pack), l->fail = Py_NewRef(fail), l->owner = kept;
    l->kinds = PyUnicode_AsUTF8(kinds);
    l->pointers = (uint64_t *)(uintptr_t)pointers, l->scalars = (void *)(uintptr_t)scalars, l->argument = (void *)(uintptr_t)argument;
    l->function = (native)(uintptr_t)function, l->returns = returns, l->brief = brief, l->thread = 0;  // thread states count from 1
    return (PyObject *)l;
}

static PyTypeObject LaunchType = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "torchlet_walk.Launch",
    .tp_basicsize = sizeof(Launch),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_HAVE_VECTORCALL,
    .tp_vectorcall_offset = offsetof(Launch, call),
    .tp_call = PyVectorcall_Call,
    .tp_traverse = (traverseproc)launch_traverse,
    .tp_clear = (inquiry)launch_clear,
    .tp_dealloc = (destructor)launch_dealloc,
    .tp_new = launch_new,
};
