// Replay: the twin of Replayer.call, of Plan.applies and Plan.run, and of advance.py.

#define REPLAY_FIELDS(X) \
    X(Replayer, turn) X(Replayer, ready) X(Signature, key) X(Signature, plan) X(Signature, calls) X(Signature, check) X(Signature, replayed) \
    X(Plan, program) X(Plan, alive) X(Plan, constants) X(Plan, data) X(Plan, advances) X(Plan, optimizers) X(Plan, values) X(Plan, taken) X(Plan, fixed) \
    X(Plan, metas) X(Plan, stores) X(Plan, tests) X(Plan, grads) X(Plan, leaves) X(Plan, without) X(Plan, added) X(Plan, result) \
    X(Advance, optimizer) X(Advance, step) X(Advance, groups) X(Advance, state) X(Advance, entries) X(Advance, lists) X(Advance, idle) \
    X(Advance, rows) X(Row, group) X(Row, states) X(Row, names) X(Row, op) X(Row, attrs) X(Row, first) X(Row, end) X(Row, before) \
    X(Row, later) X(Row, next)
REPLAY_FIELDS(OFFSET)
static PyObject *build, *refused, *asked;  // a function and an exception of replay.py, an object of advance.py

// 1 if two keys of dictionaries are the same at first sight
static inline int same_word(PyObject *a, PyObject *b) {
    return a == b || (PyUnicode_CheckExact(a) && PyUnicode_CheckExact(b) && !PyUnicode_Compare(a, b));
}

static int same_structure(PyObject *x, PyObject *key, Py_ssize_t *at, PyObject *tensors, PyObject *numbers);

// _flatten of one value, compared with the key from `at` on: 1 if it is the same, 0 if not or not known, -1 with an exception
static int same_value(PyObject *v, PyObject *key, Py_ssize_t *at, PyObject *tensors, PyObject *numbers) {
    PyObject *cls = (PyObject *)Py_TYPE(v);
#define NEXT(part) if (*at >= PyTuple_GET_SIZE(key)) return 0; PyObject *part = PyTuple_GET_ITEM(key, (*at)++)
    NEXT(part);
    if (is_tensor(v)) {
        if (part != FIELD(v, Tensor, _meta)) return 0;
        for (Py_ssize_t k = 0; k < PyList_GET_SIZE(tensors); k++) {
            if (PyList_GET_ITEM(tensors, k) != v) continue;
            NEXT(which);
            if (!PyLong_CheckExact(which) || PyLong_AsSsize_t(which) != k) return 0;
            break;
        }
        return PyList_Append(tensors, v) ? -1 : 1;
    }
    if (cls == (PyObject *)&PyFloat_Type || cls == (PyObject *)&PyLong_Type || cls == (PyObject *)&PyBool_Type)
        return part != cls ? 0 : PyList_Append(numbers, v) ? -1 : 1;
    if (cls == (PyObject *)&PyTuple_Type || cls == (PyObject *)&PyList_Type) {
        NEXT(size);
        if (part != cls || !PyLong_CheckExact(size) || PyLong_AsSsize_t(size) != SIZE(v)) return 0;
        return same_structure(v, key, at, tensors, numbers);
    }
    if (v == Py_None || cls == (PyObject *)&PyUnicode_Type) return same_word(v, part);
    if (cls == (PyObject *)&PyDict_Type) return 0;
    return PyLong_CheckExact(part) && PyLong_AsVoidPtr(part) == (void *)v;
}

static int same_structure(PyObject *x, PyObject *key, Py_ssize_t *at, PyObject *tensors, PyObject *numbers) {
    int same = 1;
    if (PyDict_CheckExact(x)) {
        PyObject *name, *v, *names;
        for (Py_ssize_t i = 0; same == 1 && PyDict_Next(x, &i, &name, &v);) same = same_value(v, key, at, tensors, numbers);
        if (same != 1) return same;
        if (*at >= PyTuple_GET_SIZE(key) || !PyTuple_CheckExact(names = PyTuple_GET_ITEM(key, (*at)++)) ||
            PyTuple_GET_SIZE(names) != PyDict_GET_SIZE(x))
            return 0;
        for (Py_ssize_t i = 0, k = 0; PyDict_Next(x, &i, &name, &v); k++)
            if (!same_word(name, PyTuple_GET_ITEM(names, k))) return 0;
        return 1;
    }
    for (Py_ssize_t i = 0; same == 1 && i < SIZE(x); i++) same = same_value(ITEM(x, i), key, at, tensors, numbers);
    return same;
}

static inline PyObject *pair(PyObject *list, Py_ssize_t i, int which) { return PyTuple_GET_ITEM(PyList_GET_ITEM(list, i), which); }

static inline PyObject *numbered(PyObject *list, PyObject *index) { return PyList_GET_ITEM(list, PyLong_AsSsize_t(index)); }

// 1 if an attribute is this very object
static inline int is_still(PyObject *o, PyObject *name, PyObject *expected) {
    PyObject *now = look(o, name);
    return now ? now == expected : -1;
}

// Row.stands: 1 if so, 0 if not or not known
static int row_stands(PyObject *row) {
    PyObject *states = FIELD(row, Row, states), *names = FIELD(row, Row, names), *before = FIELD(row, Row, before);
    for (Py_ssize_t k = 0; k < PyTuple_GET_SIZE(names); k++) {
        PyObject *name = PyTuple_GET_ITEM(names, k), *first = PyDict_GetItemWithError(PyList_GET_ITEM(states, 0), name);
        if (!first) return PyErr_Occurred() ? -1 : 0;
        for (Py_ssize_t i = 1; i < PyList_GET_SIZE(states); i++) {
            PyObject *other = PyDict_GetItemWithError(PyList_GET_ITEM(states, i), name);
            if (other == first) continue;
            if (!other || Py_TYPE(other) != Py_TYPE(first)) return PyErr_Occurred() ? -1 : 0;
            int same = PyObject_RichCompareBool(other, first, Py_EQ);  // of plain numbers
            if (same != 1) return same;
        }
    }
    if (before == Py_None) return 1;
    PyObject *earlier = PyDict_GetItemWithError(PyList_GET_ITEM(FIELD(before, Row, states), 0), n_step);
    PyObject *mine = PyDict_GetItemWithError(PyList_GET_ITEM(states, 0), n_step);
    if (!earlier || !mine) return PyErr_Occurred() ? -1 : 0;
    return PyObject_RichCompareBool(earlier, mine, FIELD(row, Row, later) == Py_True ? Py_LT : Py_EQ);
}

// what `_update` says of a row, if it fits: into `next`
static int row_asks(PyObject *optimizer, PyObject *row, PyObject *constants) {
    PyObject *states = FIELD(row, Row, states), *none = PyList_GET_SIZE(states) ? NULL : PyDict_New();
    PyObject *stack[] = {optimizer, FIELD(row, Row, group), none ? none : PyList_GET_SIZE(states) ? PyList_GET_ITEM(states, 0) : NULL};
    PyObject *outer = Py_XNewRef(get_state(n_run)), *update = NULL, *scalars;
    if (outer && stack[2] && !set_state(n_run, asked)) {
        update = PyObject_VectorcallMethod(n__update, stack, 3, NULL);
        if (set_state(n_run, outer)) Py_CLEAR(update);
    }
    Py_XDECREF(outer);
    Py_XDECREF(none);
    if (!update && PyErr_ExceptionMatches(PyExc_Exception)) return PyErr_Clear(), 0;
    if (!update) return -1;
    Py_ssize_t first = PyLong_AsSsize_t(FIELD(row, Row, first)), end = PyLong_AsSsize_t(FIELD(row, Row, end));
    int good = PyTuple_Check(update) && PyTuple_GET_SIZE(update) == 5 && PyTuple_GET_ITEM(update, 0) == FIELD(row, Row, op) &&
               PyTuple_CheckExact(scalars = PyTuple_GET_ITEM(update, 2)) && PyTuple_GET_SIZE(scalars) == end - first &&
               PyDict_CheckExact(PyTuple_GET_ITEM(update, 4));
    for (Py_ssize_t i = first; good && i < end; i++) good = Py_TYPE(PyTuple_GET_ITEM(scalars, i - first)) == Py_TYPE(PyList_GET_ITEM(constants, i));
    if (good) good = same_attrs(PyTuple_GET_ITEM(update, 3), FIELD(row, Row, attrs));
    if (good == 1) set(&FIELD(row, Row, next), update);
    Py_DECREF(update);
    return good;
}

// Advance.prepare: 1 if the optimizer's step is what it was, 0 if not or not known
static int prepare(PyObject *advance, PyObject *constants) {
    PyObject *o = FIELD(advance, Advance, optimizer), *entries = FIELD(advance, Advance, entries), *lists = FIELD(advance, Advance, lists);
    PyObject *idle = FIELD(advance, Advance, idle), *rows = FIELD(advance, Advance, rows), *step = PyObject_GetAttr(o, n_step);
    int good = !step ? -1 : PyMethod_Check(step) && PyMethod_GET_FUNCTION(step) == FIELD(advance, Advance, step);
    Py_XDECREF(step);
    if (good == 1) good = is_still(o, n_param_groups, FIELD(advance, Advance, groups));
    if (good == 1) good = is_still(o, n_state, FIELD(advance, Advance, state));
    for (Py_ssize_t i = 0; good == 1 && i < PyList_GET_SIZE(entries); i++) {
        PyObject *entry = PyList_GET_ITEM(entries, i), *now = PyDict_GetItemWithError(PyTuple_GET_ITEM(entry, 0), PyTuple_GET_ITEM(entry, 1));
        good = now ? now == PyTuple_GET_ITEM(entry, 2) : PyErr_Occurred() ? -1 : 0;
    }
    for (Py_ssize_t i = 0; good == 1 && i < PyList_GET_SIZE(lists); i++) {
        PyObject *now = pair(lists, i, 0), *items = pair(lists, i, 1);
        good = PyList_CheckExact(now) && PyList_GET_SIZE(now) == PyList_GET_SIZE(items);
        for (Py_ssize_t k = 0; good && k < PyList_GET_SIZE(items); k++) good = PyList_GET_ITEM(now, k) == PyList_GET_ITEM(items, k);
    }
    for (Py_ssize_t i = 0; good == 1 && i < PyList_GET_SIZE(idle); i++) good = FIELD(PyList_GET_ITEM(idle, i), Tensor, _grad) == Py_None;
    for (Py_ssize_t i = 0; good == 1 && i < PyList_GET_SIZE(rows); i++) {
        good = row_stands(PyList_GET_ITEM(rows, i));
        if (good == 1) good = row_asks(o, PyList_GET_ITEM(rows, i), constants);
    }
    return good;
}

// Advance.commit: 0, or -1 with an exception
static int commit(PyObject *advance, PyObject *constants) {
    PyObject *rows = FIELD(advance, Advance, rows), *name, *value;
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(rows); i++) {
        PyObject *row = PyList_GET_ITEM(rows, i), *next = FIELD(row, Row, next), *states = FIELD(row, Row, states);
        PyObject *scalars = PyTuple_GET_ITEM(next, 2);
        Py_ssize_t first = PyLong_AsSsize_t(FIELD(row, Row, first)), at = 0;
        for (Py_ssize_t k = 0; k < PyTuple_GET_SIZE(scalars); k++)
            if (PyList_SetItem(constants, first + k, Py_NewRef(PyTuple_GET_ITEM(scalars, k)))) return -1;
        while (PyDict_Next(PyTuple_GET_ITEM(next, 4), &at, &name, &value))
            for (Py_ssize_t k = 0; k < PyList_GET_SIZE(states); k++)
                if (PyDict_SetItem(PyList_GET_ITEM(states, k), name, value)) return -1;
    }
    return 0;
}

// Plan.applies: 1 if the facts hold, 0 if not or not known
static int holds(PyObject *plan, PyObject *tensors, PyObject *numbers) {
    PyObject *fixed = FIELD(plan, Plan, fixed), *metas = FIELD(plan, Plan, metas), *leaves = FIELD(plan, Plan, leaves);
    PyObject *values = FIELD(plan, Plan, values), *added = FIELD(plan, Plan, added), *taken = FIELD(plan, Plan, taken);
    PyObject *stores = FIELD(plan, Plan, stores), *without = FIELD(plan, Plan, without);
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(fixed); i++)
        if (FIELD(PyList_GET_ITEM(fixed, i), Tensor, _meta) != PyList_GET_ITEM(metas, i)) return 0;
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(leaves); i++)
        if ((FIELD(PyList_GET_ITEM(leaves, i), Tensor, _grad) == Py_None) != (PyList_GET_ITEM(without, i) == Py_True)) return 0;
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(values); i++) {
        PyObject *now = numbered(numbers, pair(values, i, 0)), *known = pair(values, i, 1);
        if (now == known) continue;
        if (Py_TYPE(now) != Py_TYPE(known)) return 0;
        int same = PyObject_RichCompareBool(now, known, Py_EQ);  // of plain numbers
        if (same != 1) return same;
    }
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(added); i++)
        if (FIELD(pair(added, i, 0), Tensor, _grad) != pair(added, i, 1)) return 0;
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(tensors); i++) {
        PyObject *t = PyList_GET_ITEM(tensors, i);
        if (is_pending(t) || (FIELD(FIELD(t, Tensor, _meta), Meta, shared) != Py_False && is_exported(t))) return 0;
    }
    for (Py_ssize_t i = 0; stores != Py_None && i < PyList_GET_SIZE(taken); i++) {
        PyObject *store = store_of(numbered(tensors, pair(taken, i, 1)));
        for (Py_ssize_t k = 0; k < i; k++)
            if (store_of(numbered(tensors, pair(taken, k, 1))) == store) return 0;
        PyObject *id = PyLong_FromVoidPtr(store);
        int found = id ? PySet_Contains(stores, id) : -1;
        Py_XDECREF(id);
        if (found) return found < 0 ? -1 : 0;
    }
    int good = 1;
    if (PyList_GET_SIZE(FIELD(plan, Plan, tests))) {
        PyObject *stack[] = {plan, tensors}, *passes = PyObject_VectorcallMethod(n_passes, stack, 2, NULL);
        good = passes ? passes == Py_True : -1;
        Py_XDECREF(passes);
    }
    PyObject *advances = FIELD(plan, Plan, advances);
    for (Py_ssize_t i = 0; good == 1 && i < PyList_GET_SIZE(advances); i++)
        good = prepare(PyList_GET_ITEM(advances, i), FIELD(plan, Plan, constants));
    return good;
}

// 1 if only its one holder can see this tensor: instead of a new one in its place, it may become that itself
static int is_forgotten(PyObject *t) {
    if ((PyObject *)Py_TYPE(t) != Tensor || Py_REFCNT(t) != 1 || is_exported(t) || Py_REFCNT(FIELD(t, Tensor, _store)) != 1) return 0;
    if (FIELD(t, Tensor, _node) != Py_None || FIELD(t, Tensor, _grad) != Py_None || FIELD(t, Tensor, _hooks) != Py_None) return 0;
    if (FIELD(t, Tensor, _base) != Py_None || *(PyObject **)((char *)t + Py_TYPE(t)->tp_weaklistoffset)) return 0;
    PyObject *notes = PyObject_GenericGetDict(t, NULL);
    int none = notes && !PyDict_GET_SIZE(notes);
    Py_XDECREF(notes);
    if (!notes) PyErr_Clear();
    return none;
}

// such a tensor, as `fresh_tensor` makes them
static void begin_anew(PyObject *t, PyObject *meta) {
    set(&FIELD(t, Tensor, _np), Py_None);
    set(&FIELD(t, Tensor, _ptr), zero);
    set(&FIELD(t, Tensor, _run), Py_None);
    set(&FIELD(t, Tensor, _step), Py_None);
    set(&FIELD(t, Tensor, _meta), meta);
    set(&FIELD(FIELD(t, Tensor, _store), Storage, version), zero);
}

// Plan.run of a plan that is ready and whose program is plain
static PyObject *run_again(PyObject *plan, PyObject *tensors, PyObject *numbers) {
    PyObject *alive = FIELD(plan, Plan, alive), *grads = FIELD(plan, Plan, grads), *taken = FIELD(plan, Plan, taken);
    PyObject *data = FIELD(plan, Plan, data), *advances = FIELD(plan, Plan, advances), *result = FIELD(plan, Plan, result), *out = NULL;
    Py_ssize_t n = PyList_GET_SIZE(grads), m = PyList_GET_SIZE(alive);
    PyObject *made = PyList_New(m), **before = PyMem_Calloc(n + 1, sizeof *before), *done;
    int failed = !made || !before;
    for (Py_ssize_t i = 0; !failed && i < n && !PyList_GET_SIZE(FIELD(plan, Plan, optimizers)); i++) {  // else something may run before
        PyObject *g = FIELD(pair(grads, i, 0), Tensor, _grad);
        Py_ssize_t k = PyLong_AsSsize_t(pair(grads, i, 1));
        if (g != Py_None && !PyList_GET_ITEM(made, k) && is_forgotten(g)) PyList_SET_ITEM(made, k, Py_NewRef(g));
    }
    for (Py_ssize_t i = 0; !failed && i < m; i++) {
        if (PyList_GET_ITEM(made, i)) continue;
        PyObject *s = PyList_GET_ITEM(alive, i), *t = fresh_tensor(Py_None, Py_None, FIELD(s, Step, meta));
        if (!t) failed = 1;
        else PyList_SET_ITEM(made, i, t);
    }
    if (failed) {
        Py_XDECREF(made);
        PyMem_Free(before);
        return NULL;
    }
    for (Py_ssize_t i = 0; i < m; i++) set(&FIELD(PyList_GET_ITEM(alive, i), Slot, t), PyList_GET_ITEM(made, i));
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(taken); i++) set(&FIELD(pair(taken, i, 0), Slot, t), numbered(tensors, pair(taken, i, 1)));
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(data); i++) {
        PyObject *value = Py_NewRef(numbered(numbers, pair(data, i, 1)));
        failed |= PyList_SetItem(FIELD(plan, Plan, constants), PyLong_AsSsize_t(pair(data, i, 0)), value);
    }
    for (Py_ssize_t i = 0; i < n; i++) {
        PyObject **place = &FIELD(pair(grads, i, 0), Tensor, _grad);
        before[i] = *place;
        *place = Py_NewRef(numbered(made, pair(grads, i, 1)));
    }
    if (!failed && PyList_GET_SIZE(FIELD(plan, Plan, optimizers))) {
        if (!(done = PyObject_CallMethodNoArgs(plan, n_ask))) failed = 1;
        Py_XDECREF(done);
    }
    for (Py_ssize_t i = 0; !failed && i < PyList_GET_SIZE(advances); i++) failed = commit(PyList_GET_ITEM(advances, i), FIELD(plan, Plan, constants));
    if (failed) {  // nothing has happened yet
        for (Py_ssize_t i = 0; i < n; i++) Py_XSETREF(FIELD(pair(grads, i, 0), Tensor, _grad), before[i]);
    } else {
        for (Py_ssize_t i = 0; i < n; i++) {
            PyObject *g = numbered(made, pair(grads, i, 1));
            if (before[i] == g) begin_anew(g, FIELD(numbered(alive, pair(grads, i, 1)), Step, meta));
            Py_DECREF(before[i]);
        }
        PyObject *stack[] = {FIELD(plan, Plan, program), FIELD(plan, Plan, constants)};
        if (!(done = PyObject_VectorcallMethod(n_launch, stack, 2, NULL))) failed = 1;
        Py_XDECREF(done);
        for (Py_ssize_t i = 0; failed && i < n; i++) set(&FIELD(pair(grads, i, 0), Tensor, _grad), Py_None);
    }
    PyMem_Free(before);
    for (Py_ssize_t i = 0; i < m; i++) set(&FIELD(PyList_GET_ITEM(alive, i), Slot, t), Py_None);
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(taken); i++) set(&FIELD(pair(taken, i, 0), Slot, t), Py_None);
    if (!failed && PyUnicode_Compare(PyTuple_GET_ITEM(result, 0), n_made) == 0) {
        out = Py_NewRef(numbered(made, PyTuple_GET_ITEM(result, 1)));
    } else if (!failed) {
        PyObject *stack[] = {result, made, tensors};
        out = PyObject_Vectorcall(build, stack, 3, NULL);
    }
    Py_DECREF(made);
    return out;
}

// a call like the last one, which was replayed; NotImplemented where anything is not the common case
static PyObject *call_again(PyObject *replayer, PyObject *args, PyObject *kwargs) {
    PyObject *known = FIELD(replayer, Replayer, ready), *plan, *key, *out = NULL;
    if (known == Py_None || (plan = FIELD(known, Signature, plan)) == Py_None) Py_RETURN_NOTIMPLEMENTED;
    key = FIELD(known, Signature, key);
    if (PyLong_AsLongLong(FIELD(known, Signature, calls)) + 1 == PyLong_AsLongLong(FIELD(known, Signature, check)) ||
        PyTuple_GET_ITEM(key, 1) != PyDict_GetItemWithError(dtypes, n__default))
        Py_RETURN_NOTIMPLEMENTED;
    PyObject *grad = get_state(n_grad), *run = grad ? get_state(n_run) : NULL;
    if (!run) return NULL;
    if (PyTuple_GET_ITEM(key, 0) != grad || run != Py_None) Py_RETURN_NOTIMPLEMENTED;
    int good = is_plain(FIELD(plan, Plan, program));
    PyObject *tensors = PyList_New(0), *numbers = PyList_New(0);
    Py_ssize_t at = 2;
    Py_INCREF(known);
    Py_INCREF(plan);
    if (!tensors || !numbers) good = -1;
    if (good == 1) good = same_structure(args, key, &at, tensors, numbers);
    if (good == 1 && PyDict_GET_SIZE(kwargs)) good = same_structure(kwargs, key, &at, tensors, numbers);
    if (good == 1) good = at == PyTuple_GET_SIZE(key);
    if (good == 1) good = holds(plan, tensors, numbers);
    if (good == 1) good = FIELD(replayer, Replayer, ready) == known && FIELD(known, Signature, plan) == plan;
    if (good == 1) {
        set(&FIELD(replayer, Replayer, ready), Py_None);
        good = add_to(&FIELD(known, Signature, calls), one) ? -1 : 1;
    }
    if (good == 1 && (out = run_again(plan, tensors, numbers))) {
        if (add_to(&FIELD(known, Signature, replayed), one)) Py_CLEAR(out);
        else set(&FIELD(replayer, Replayer, ready), known);
    } else if (good == 1 && PyErr_ExceptionMatches(refused)) {  // the twin finds it, too, and knows what follows
        PyErr_Clear();
        good = add_to(&FIELD(known, Signature, calls), minus_one) ? -1 : 0;
    }
    Py_XDECREF(tensors);
    Py_XDECREF(numbers);
    Py_DECREF(known);
    Py_DECREF(plan);
    return out ? out : good ? NULL : Py_NewRef(Py_NotImplemented);
}

// again(replayer, args, kwargs): what one thread at a time may do
static PyObject *again(PyObject *module, PyObject *const *args, Py_ssize_t nargs) {
    if (nargs != 3 || !PyTuple_CheckExact(args[1]) || !PyDict_CheckExact(args[2]))
        return PyErr_SetString(PyExc_TypeError, "again(replayer, args, kwargs)"), NULL;
    PyObject *turn = FIELD(args[0], Replayer, turn);
    if (!turn || !PyList_GET_SIZE(turn)) Py_RETURN_NOTIMPLEMENTED;
    Py_INCREF(turn);
    PyObject *out = PyList_SetSlice(turn, 0, 1, NULL) ? NULL : call_again(args[0], args[1], args[2]), *type, *error, *trace;
    PyErr_Fetch(&type, &error, &trace);
    if (PyList_Append(turn, Py_True)) PyErr_Clear();  // then all calls are followed
    PyErr_Restore(type, error, trace);
    Py_DECREF(turn);
    return out;
}

// setup_replay(Replayer, Signature, Plan, Advance, Row, asked, refused, build)
static PyObject *setup_replay(PyObject *module, PyObject *names) {
    PyObject *Replayer, *Signature, *Plan, *Advance, *Row;
    if (!PyArg_ParseTuple(names, "OOOOOOOO", &Replayer, &Signature, &Plan, &Advance, &Row, &asked, &refused, &build)) return NULL;
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(names); i++) Py_INCREF(PyTuple_GET_ITEM(names, i));  // for good
    REPLAY_FIELDS(READ)
    Py_RETURN_NONE;
}
