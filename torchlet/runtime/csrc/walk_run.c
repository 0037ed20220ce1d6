// The base of Run: twins of its hot methods, by which a call follows a path that is known, from its begin to its end.

typedef struct {
    PyObject_HEAD
    PyObject *cur, *root, *start, *scalars, *moved, *writes_pending, *tape, *turned, *replaced, *cause, *calls, *thread, *arguments, *copies;
    int inside;
} Walk;

#define WALK_OBJECTS(X) X(cur) X(root) X(start) X(scalars) X(moved) X(writes_pending) X(tape) X(turned) X(replaced) X(cause) X(calls) X(thread) X(arguments) X(copies)

static int walk_traverse(Walk *w, visitproc visit, void *arg) {
#define VISIT(name) Py_VISIT(w->name);
    WALK_OBJECTS(VISIT)
    return 0;
}

static int walk_clear(Walk *w) {
#define CLEAR(name) Py_CLEAR(w->name);
    WALK_OBJECTS(CLEAR)
    return 0;
}

static void walk_dealloc(Walk *w) {
    PyObject_GC_UnTrack(w);
    walk_clear(w);
    Py_TYPE(w)->tp_free(w);
}

static PyObject *twin(PyObject *name, Walk *w, PyObject *const *args, size_t nargs, PyObject *kwnames) {
    PyObject *function = PyObject_GetAttr(Run, name), *stack[8], *out = NULL;
    size_t n = nargs + (kwnames ? PyTuple_GET_SIZE(kwnames) : 0);
    if (!function) return NULL;
    if (n > 7) {
        PyErr_SetString(PyExc_TypeError, "too many arguments");
    } else {
        stack[0] = (PyObject *)w;
        for (size_t i = 0; i < n; i++) stack[i + 1] = args[i];
        out = PyObject_Vectorcall(function, stack, nargs + 1, kwnames);
    }
    Py_DECREF(function);
    return out;
}

// 1 if operand x is what the check says, 0 if not, -1 with an exception; a new outside tensor is bound to its slot
static int match(Walk *w, PyObject *x, PyObject *check) {
    PyObject *slot = PyTuple_GET_ITEM(check, 0), *meta = PyTuple_GET_ITEM(check, 1);
    if (meta == Py_None) return x == FIELD(slot, Slot, t);
    if (slot != Py_None) {
        if (!is_tensor(x) || FIELD(x, Tensor, _meta) != meta || is_pending(x)) return 0;
        if (FIELD(meta, Meta, shared) != Py_False && is_exported(x)) return 0;
        set(&FIELD(slot, Slot, t), x);
        return 1;
    }
    if ((PyObject *)Py_TYPE(x) == meta) return PyList_Append(w->scalars, x) ? -1 : 1;
    if ((PyObject *)Py_TYPE(meta) != Constant) return 0;
    PyObject *value = FIELD(meta, Constant, value);
    if (x == value) return 1;
    if (Py_TYPE(x) != Py_TYPE(value)) return 0;
    PyObject *a = PyObject_Repr(x), *b = a ? PyObject_Repr(value) : NULL;
    int same = b ? PyObject_RichCompareBool(a, b, Py_EQ) : -1;
    Py_XDECREF(a);
    Py_XDECREF(b);
    return same;
}

static int forget_scalars(Walk *w, Py_ssize_t before) {
    Py_ssize_t now = PyList_GET_SIZE(w->scalars);
    return now > before ? PyList_SetSlice(w->scalars, before, now, NULL) : 0;
}

// all operands of a step, the first of which may stand apart; if it is no match, no number is left behind
static int match_all(Walk *w, PyObject *checks, PyObject *first, PyObject *const *inputs, Py_ssize_t n) {
    Py_ssize_t before = PyList_GET_SIZE(w->scalars), at = 0;
    if (PyTuple_GET_SIZE(checks) != n + (first != NULL)) return 0;
    int same = first ? match(w, first, PyTuple_GET_ITEM(checks, at++)) : 1;
    for (Py_ssize_t i = 0; same == 1 && i < n; i++) same = match(w, inputs[i], PyTuple_GET_ITEM(checks, at++));
    if (!same && forget_scalars(w, before)) return -1;
    return same;
}

// the placeholder of a step's output: the one it has if nobody else holds it, else a fresh one
static PyObject *place(Walk *w, PyObject *s) {
    PyObject *t = FIELD(s, Slot, t);
    if (t != Py_None) {
        if (Py_REFCNT(t) == 1 && is_pending(t)) return Py_NewRef(t);
        set(&w->moved, Py_True);
    }
    t = fresh_tensor((PyObject *)w, s, FIELD(s, Step, meta));
    if (t) set(&FIELD(s, Slot, t), t);
    return t;
}

// 1 if the expected next step has these attributes
static inline int same_attrs(PyObject *a, PyObject *b) { return a == b ? 1 : PyObject_RichCompareBool(a, b, Py_EQ); }

// 1 if the operation is the expected step, which is taken; 0 if not; -1 with an exception
static int follow(Walk *w, PyObject *op, PyObject *const *inputs, Py_ssize_t n, PyObject *attrs, PyObject **out) {
    PyObject *s = FIELD(w->cur, Step, next);
    if (s == Py_None || FIELD(s, Step, functional) != op) return 0;
    Py_INCREF(s);
    w->inside++;
    int same = same_attrs(FIELD(s, Step, attrs), attrs);
    if (same == 1) same = match_all(w, FIELD(s, Step, checks), NULL, inputs, n);
    if (same == 1) {
        set(&w->cur, s);
        if (!(*out = place(w, s))) same = -1;
    }
    w->inside--;
    Py_DECREF(s);
    return same;
}

static PyObject *walk_step(Walk *w, PyObject *const *args, Py_ssize_t nargs) {
    if (nargs != 3 || !PyTuple_CheckExact(args[1])) return twin(n_step, w, args, nargs, NULL);
    PyObject *out = NULL, *stack[] = {(PyObject *)w, args[0], args[1], args[2]};
    int same = follow(w, args[0], &PyTuple_GET_ITEM(args[1], 0), PyTuple_GET_SIZE(args[1]), args[2], &out);
    return same ? out : PyObject_VectorcallMethod(n__record_op, stack, 4, NULL);
}

static PyObject *walk_step_inplace(Walk *w, PyObject *const *args, Py_ssize_t nargs) {  // op, target, inputs, attrs
    PyObject *s = FIELD(w->cur, Step, next);
    if (nargs == 4 && PyTuple_CheckExact(args[2]) && s != Py_None && FIELD(s, Step, op) == args[0] && FIELD(s, Step, kind) == n_inplace &&
        w->tape == Py_None) {
        Py_INCREF(s);
        w->inside++;
        int same = FIELD(args[0], Op, check) == Py_None;
        if (same == 1) same = same_attrs(FIELD(s, Step, attrs), args[3]);
        if (same == 1) same = match_all(w, FIELD(s, Step, checks), args[1], &PyTuple_GET_ITEM(args[2], 0), PyTuple_GET_SIZE(args[2]));
        int pending = same == 1 && FIELD(args[1], Tensor, _np) == Py_None;
        if (same == 1) {
            set(&w->cur, s);
            if (!pending) set(&w->writes_pending, Py_True);
        }
        w->inside--;
        if (same == 1 && PyTuple_GET_SIZE(FIELD(s, Step, turns))) {
            PyObject *stack[] = {(PyObject *)w, s}, *done = PyObject_VectorcallMethod(n__turn, stack, 2, NULL);
            Py_XDECREF(done);
            if (!done) same = -1;
        }
        Py_DECREF(s);
        if (same) return same == 1 ? Py_NewRef(args[1]) : NULL;
    }
    return twin(n_step_inplace, w, args, nargs, NULL);
}

// lists of tensors come in a list or in a tuple
#define SIZE(x) (PyList_CheckExact(x) ? PyList_GET_SIZE(x) : PyTuple_GET_SIZE(x))
#define ITEM(x, i) (PyList_CheckExact(x) ? PyList_GET_ITEM(x, i) : PyTuple_GET_ITEM(x, i))

// 1 if an update's lists and numbers are those of step s
static int match_update(Walk *w, PyObject *s, PyObject *lists, PyObject *numbers, PyObject *attrs) {
    PyObject *expected = FIELD(s, Step, attrs), *lengths = PyTuple_GET_ITEM(expected, 1), *known = FIELD(s, Step, known);
    Py_ssize_t n = SIZE(lists), m = PyTuple_GET_SIZE(numbers), at = 0;
    int same = same_attrs(PyTuple_GET_ITEM(expected, 0), attrs);
    if (same != 1) return same;
    if (PyTuple_GET_SIZE(lengths) != n) return 0;
    for (Py_ssize_t i = 0; i < n; i++) {
        PyObject *list = ITEM(lists, i);
        if (!PyList_CheckExact(list) || PyLong_AsSsize_t(PyTuple_GET_ITEM(lengths, i)) != PyList_GET_SIZE(list)) return 0;
        at += PyList_GET_SIZE(list);
    }
    PyObject *checks = FIELD(s, Step, checks);
    if (PyTuple_GET_SIZE(checks) != at + m) return 0;
    at = 0;
    if (known != Py_None) {
        PyObject *slots = PyTuple_GET_ITEM(known, 0), *types = PyTuple_GET_ITEM(known, 1);
        for (Py_ssize_t i = 0; i < n; i++) {
            PyObject *list = ITEM(lists, i);
            for (Py_ssize_t k = 0; k < PyList_GET_SIZE(list); k++)
                if (PyList_GET_ITEM(list, k) != FIELD(PyTuple_GET_ITEM(slots, at + k), Slot, t)) return 0;
            at += PyList_GET_SIZE(list);
        }
        for (Py_ssize_t i = 0; i < m; i++)
            if ((PyObject *)Py_TYPE(PyTuple_GET_ITEM(numbers, i)) != PyTuple_GET_ITEM(types, i)) return 0;
        for (Py_ssize_t i = 0; i < m; i++)
            if (PyList_Append(w->scalars, PyTuple_GET_ITEM(numbers, i))) return -1;
        return 1;
    }
    Py_ssize_t before = PyList_GET_SIZE(w->scalars);
    for (Py_ssize_t i = 0; same == 1 && i < n; i++) {
        PyObject *list = ITEM(lists, i);
        for (Py_ssize_t k = 0; same == 1 && k < PyList_GET_SIZE(list); k++) {
            PyObject *x = Py_NewRef(PyList_GET_ITEM(list, k));
            same = match(w, x, PyTuple_GET_ITEM(checks, at++));
            Py_DECREF(x);
        }
    }
    for (Py_ssize_t i = 0; same == 1 && i < m; i++) same = match(w, PyTuple_GET_ITEM(numbers, i), PyTuple_GET_ITEM(checks, at++));
    if (!same && forget_scalars(w, before)) return -1;
    return same;
}

static PyObject *walk_update(Walk *w, PyObject *const *args, Py_ssize_t nargs) {  // op, lists, scalars, attrs
    PyObject *s = FIELD(w->cur, Step, next);
    if (nargs == 4 && (PyTuple_CheckExact(args[1]) || PyList_CheckExact(args[1])) && PyTuple_CheckExact(args[2]) && s != Py_None && FIELD(s, Step, op) == args[0] &&
        FIELD(s, Step, kind) == n_update && w->tape == Py_None) {
        Py_INCREF(s);
        w->inside++;
        int same = match_update(w, s, args[1], args[2], args[3]);
        if (same == 1) {
            set(&w->cur, s);
            set(&w->writes_pending, Py_True);
        }
        w->inside--;
        Py_DECREF(s);
        if (same) return same == 1 ? Py_NewRef(Py_None) : NULL;
    }
    return twin(n_update, w, args, nargs, NULL);
}

// ------------------------------------------------------------------------------------------------ backward

// 1 if no two are the same, 0 if some are, -1 with an exception
static int distinct(PyObject **items, Py_ssize_t n) {
    if (n <= 16) {
        for (Py_ssize_t i = 1; i < n; i++)
            for (Py_ssize_t k = 0; k < i; k++)
                if (items[i] == items[k]) return 0;
        return 1;
    }
    size_t size = 16;
    while (size < 2 * (size_t)n) size *= 2;
    PyObject **table = PyMem_Calloc(size, sizeof *table);
    if (!table) return PyErr_NoMemory(), -1;
    int unique = 1;
    for (Py_ssize_t i = 0; unique && i < n; i++) {
        size_t at = ((uintptr_t)items[i] >> 4) * 0x9E3779B97F4A7C15u >> 32 & (size - 1);
        while (table[at] && table[at] != items[i]) at = (at + 1) & (size - 1);
        unique = !table[at];
        table[at] = items[i];
    }
    PyMem_Free(table);
    return unique;
}

// 1 if there are no hooks: None, or a dict that is empty
static int has_no(PyObject *hooks) { return hooks == Py_None || (hooks && PyDict_CheckExact(hooks) && !PyDict_GET_SIZE(hooks)); }

// 1 if a backward pass may give this leaf its gradient without looking further; -1 with an exception
static int is_plain_leaf(PyObject *leaf) {
    if (!is_tensor(leaf) || FIELD(leaf, Tensor, _node) != Py_None || FIELD(leaf, Tensor, _base) != Py_None) return 0;
    PyObject *accumulated = look(leaf, n__accumulated_hooks);
    return accumulated ? has_no(FIELD(leaf, Tensor, _hooks)) && has_no(accumulated) : -1;
}

// 1 if what the leaf has in .grad is what the stride expects of leaf i
static int fits(PyObject *m, PyObject *leaf, Py_ssize_t i) {
    int plain = is_plain_leaf(leaf);
    if (plain != 1) return plain;
    PyObject *g = FIELD(leaf, Tensor, _grad), *old = PyList_GET_ITEM(FIELD(m, Macro, olds), i);
    if (old == Py_None || g == Py_None) return old == g;
    PyObject *meta = PyList_GET_ITEM(FIELD(m, Macro, old_metas), i);
    if (meta == Py_None) return g == FIELD(old, Slot, t);
    return g && is_tensor(g) && FIELD(g, Tensor, _meta) == meta && !is_pending(g) && !is_exported(g);
}

static int stride(Walk *w, PyObject *m) {
    PyObject *slots = FIELD(m, Macro, slots);
    Py_ssize_t n = PyList_GET_SIZE(slots);
    PyObject **leaves = PyMem_Malloc((n + 1) * sizeof *leaves);
    if (!leaves) return PyErr_NoMemory(), -1;
    for (Py_ssize_t i = 0; i < n; i++) leaves[i] = Py_NewRef(FIELD(PyList_GET_ITEM(slots, i), Slot, t));
    int good = distinct(leaves, n);
    for (Py_ssize_t i = 0; good == 1 && i < n; i++) good = fits(m, leaves[i], i);
    for (Py_ssize_t i = 0; good == 1 && i < n; i++) {
        PyObject *old = PyList_GET_ITEM(FIELD(m, Macro, olds), i), *before = Py_NewRef(FIELD(leaves[i], Tensor, _grad));
        PyObject *note = PyTuple_Pack(2, leaves[i], before);
        if (!note || PyList_Append(w->replaced, note)) good = -1;
        if (good == 1 && old == Py_None) {
            PyObject *g = place(w, PyList_GET_ITEM(FIELD(m, Macro, made), i));
            if (!g) good = -1;
            else Py_XSETREF(FIELD(leaves[i], Tensor, _grad), g);
        } else if (good == 1) {
            set(&w->writes_pending, Py_True);
            if (PyList_GET_ITEM(FIELD(m, Macro, old_metas), i) != Py_None) set(&FIELD(old, Slot, t), before);
        }
        Py_XDECREF(note);
        Py_DECREF(before);
    }
    for (Py_ssize_t i = 0; i < n; i++) Py_DECREF(leaves[i]);
    PyMem_Free(leaves);
    if (good == 1) set(&w->cur, FIELD(m, Macro, end));
    return good;
}

// 1 if the backward pass of a pending tensor was known from here, and is done; 0 if it has to be walked; -1 with an exception
static int stride_from(Walk *w, PyObject *t, PyObject *retain_graph) {
    if (!is_pending(t)) return 0;
    PyObject *key = PyTuple_Pack(2, FIELD(t, Tensor, _step), retain_graph);
    if (!key) return -1;
    PyObject *m = PyDict_GetItemWithError(FIELD(w->cur, Step, macros), key);
    Py_DECREF(key);
    if (!m) return PyErr_Occurred() ? -1 : 0;
    Py_INCREF(m);
    w->inside++;
    int good = stride(w, m);
    w->inside--;
    Py_DECREF(m);
    return good;
}

static int may_stride(Walk *w, PyObject *t) {
    return w->cur != HELD && w->copies && !PyDict_GET_SIZE(w->copies) && is_tensor(t) && FIELD(t, Tensor, _step);
}

// tensors, gradients, retain_graph, create_graph, inputs
static PyObject *walk_follow_backward(Walk *w, PyObject *const *args, Py_ssize_t nargs) {
    if (nargs != 5 || !PyTuple_CheckExact(args[0]) || !PyTuple_CheckExact(args[1]) || PyTuple_GET_SIZE(args[0]) != 1 ||
        PyTuple_GET_ITEM(args[1], 0) != Py_None || !PyBool_Check(args[2]) || args[3] != Py_False || args[4] != Py_None ||
        !may_stride(w, PyTuple_GET_ITEM(args[0], 0)))
        return twin(n_follow_backward, w, args, nargs, NULL);
    int good = stride_from(w, PyTuple_GET_ITEM(args[0], 0), args[2]);
    return good < 0 ? NULL : PyBool_FromLong(good);
}

// ------------------------------------------------------------------------------------------------ the end of a segment

// 1 if what can be seen of the path's tensors is what its program was compiled for
static int is_as_expected(PyObject *quiet, PyObject *path, PyObject *slots) {
    if (PyList_GET_SIZE(FIELD(path, Path, written_outside))) {
        Py_ssize_t n = PyList_GET_SIZE(slots);
        PyObject **stores = PyMem_Malloc((n + 1) * sizeof *stores);
        if (!stores) return PyErr_NoMemory(), -1;
        int good = 1;
        for (Py_ssize_t i = 0; good == 1 && i < n; i++)
            if (!(stores[i] = store_of(FIELD(PyList_GET_ITEM(slots, i), Slot, t)))) good = 0;
        if (good == 1) good = distinct(stores, n);
        PyMem_Free(stores);
        if (good != 1) return good;
    }
    PyObject *alive = FIELD(quiet, Quiet, alive), *dead = FIELD(quiet, Quiet, dead), *notes = FIELD(quiet, Quiet, notes);
    PyObject *watched = FIELD(quiet, Quiet, watched);
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(alive); i++)
        if (Py_REFCNT(FIELD(PyList_GET_ITEM(alive, i), Slot, t)) <= 1) return 0;
    Py_ssize_t count = 0;
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(dead); i++) count += Py_REFCNT(FIELD(PyList_GET_ITEM(dead, i), Slot, t)) + seen_more;
    if (count != PyLong_AsSsize_t(FIELD(quiet, Quiet, count))) return 0;
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(notes); i++)
        if (PyDict_GET_SIZE(PyList_GET_ITEM(notes, i))) return 0;
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(watched); i++) {
        PyObject *t = FIELD(PyList_GET_ITEM(watched, i), Slot, t);
        if (!is_tensor(t) || FIELD(t, Tensor, _grad) != Py_None || *(PyObject **)((char *)t + Py_TYPE(t)->tp_weaklistoffset)) return 0;
    }
    return 1;
}

static void unbind(PyObject *slots) {
    if (PyTuple_CheckExact(slots))
        for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(slots); i++) set(&FIELD(PyTuple_GET_ITEM(slots, i), Slot, t), Py_None);
    else
        for (Py_ssize_t i = 0; i < PyList_GET_SIZE(slots); i++) set(&FIELD(PyList_GET_ITEM(slots, i), Slot, t), Py_None);
}

static int is_plain(PyObject *program) {
    PyObject *plain = PyObject_GetAttr(program, n_is_plain);
    int is = plain ? plain == Py_True : -1;
    Py_XDECREF(plain);
    return is;
}

// Run._run of a program that is expected: a plain launch of what lies in one native call, anything else by the twin
static PyObject *run_program(Walk *w, PyObject *path, PyObject *alive, PyObject *program) {
    PyObject *stepwise = PyObject_GetAttr(program, n_stepwise);
    int plain = stepwise ? PyObject_Not(stepwise) : -1;
    Py_XDECREF(stepwise);
    if (plain == 1) plain = is_plain(program);
    if (plain < 0) return NULL;
    PyObject *stack[] = {(PyObject *)w, path, alive, program}, *launched[] = {program, w->scalars};
    if (!plain) return PyObject_VectorcallMethod(n__run, stack, 4, NULL);
    w->inside++;  // it has no frame, and lets other threads run
    PyObject *done = PyObject_VectorcallMethod(n_launch, launched, 2, NULL);
    w->inside--;
    if (done || !PyErr_ExceptionMatches(PyExc_Exception)) return done;
    PyObject *type, *error, *trace;
    PyErr_Fetch(&type, &error, &trace);
    PyErr_NormalizeException(&type, &error, &trace);
    if (trace) PyException_SetTraceback(error, trace);
    PyObject *failed[] = {(PyObject *)w, program, error}, *reason = PyObject_VectorcallMethod(n__failure, failed, 3, NULL);
    if (reason) {
        PyObject *again[] = {(PyObject *)w, path, alive, reason};
        done = PyObject_VectorcallMethod(n__run_stepwise, again, 4, NULL);
        Py_DECREF(reason);
    }
    Py_XDECREF(type);
    Py_XDECREF(error);
    Py_XDECREF(trace);
    return done;
}

// reason="", last=False; everything else is for the twin. `over`: the call ends with it, and STATE.run stays None
static PyObject *flush(Walk *w, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames, int over) {
    PyObject *reason = nargs ? args[0] : empty, *end = w->cur, *path, *quiet;
    int last = kwnames && PyTuple_GET_SIZE(kwnames) == 1 && PyTuple_GET_ITEM(kwnames, 0) == n_last && args[nargs] == Py_True;
    if (nargs > 1 || (kwnames && !last) || end == HELD || end == w->root || (path = FIELD(end, Step, path)) == Py_None ||
        w->tape != Py_None || w->moved != Py_False || !w->copies || PyDict_GET_SIZE(w->copies) || (!last && FIELD(end, Step, after) == Py_None))
        return twin(n_flush, w, args, nargs, kwnames);
    quiet = FIELD(path, Path, quiet);
    if (quiet == Py_None || FIELD(quiet, Quiet, program) == Py_None || PyLong_AsSsize_t(FIELD(path, Path, scalar_count)) != PyList_GET_SIZE(w->scalars))
        return twin(n_flush, w, args, nargs, kwnames);
    int known = PyDict_Contains(FIELD(path, Path, reasons), reason);
    if (known != 1) return known < 0 ? NULL : twin(n_flush, w, args, nargs, kwnames);

    PyObject *outer = over ? Py_NewRef(Py_None) : Py_XNewRef(get_state(n_run)), *slots = FIELD(path, Path, slots);
    if (!outer || add_to(&FIELD(path, Path, launches), one) || set_state(n_run, Py_None)) {
        Py_XDECREF(outer);
        return NULL;
    }
    set(&FIELD(path, Path, used), w->calls);
    Py_INCREF(slots);
    Py_INCREF(end);
    Py_INCREF(path);
    Py_INCREF(quiet);
    set(&w->root, end);
    w->inside++;
    int good = is_as_expected(quiet, path, slots);
    w->inside--;
    PyObject *done = NULL;
    if (good == 1) {
        done = run_program(w, path, FIELD(quiet, Quiet, alive), FIELD(quiet, Quiet, program));
    } else if (!good) {
        PyObject *stack[] = {(PyObject *)w, path, empty};
        done = PyObject_VectorcallMethod(n__launch, stack, 3, NULL);
    }
    PyObject *type = NULL, *error = NULL, *trace = NULL;
    if (!done) {
        PyErr_Fetch(&type, &error, &trace);
        PyErr_NormalizeException(&type, &error, &trace);
        PyObject *stack[] = {(PyObject *)w, path, error}, *lost = PyObject_VectorcallMethod(n__lose, stack, 3, NULL);
        if (!lost) {  // as a second exception inside an except clause
            Py_XDECREF(type);
            Py_XDECREF(error);
            Py_XDECREF(trace);
            PyErr_Fetch(&type, &error, &trace);
        }
        Py_XDECREF(lost);
    }
    Py_XDECREF(done);
    int failed = 0;
    if (PyList_GET_SIZE(w->turned)) {
        PyObject *turned = PyObject_CallMethodNoArgs((PyObject *)w, n__turn_back);
        failed = !turned;
        Py_XDECREF(turned);
    }
    w->inside++;
    failed |= !over && set_state(n_run, outer);
    PyObject *expected = FIELD(end, Step, next);
    if (expected != Py_None) unbind(FIELD(expected, Step, fresh));
    failed |= PyList_SetSlice(w->replaced, 0, PyList_GET_SIZE(w->replaced), NULL);
    failed |= PyList_SetSlice(w->scalars, 0, PyList_GET_SIZE(w->scalars), NULL);
    set(&w->writes_pending, Py_False);
    set(&w->moved, Py_False);
    set(&w->tape, Py_None);
    set(&w->cause, empty);
    set(&w->root, last ? w->start : FIELD(end, Step, after));
    set(&w->cur, w->root);
    unbind(slots);
    w->inside--;
    Py_DECREF(end);
    Py_DECREF(path);
    Py_DECREF(quiet);
    Py_DECREF(outer);
    Py_DECREF(slots);
    if (type) PyErr_Restore(type, error, trace);
    if (type || failed) return NULL;
    Py_RETURN_NONE;
}

static PyObject *walk_flush(Walk *w, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames) {
    return flush(w, args, nargs, kwnames, 0);
}

// ------------------------------------------------------------------------------------------------ a call

static PyObject *begin(Walk *w, PyObject *arguments) {
    static PyObject *mine;  // the number of the thread that was here last
    static unsigned long ident;
    if (!mine || ident != PyThread_get_thread_ident()) {
        PyObject *number = PyLong_FromUnsignedLong(PyThread_get_thread_ident());
        if (!number) return NULL;
        ident = PyThread_get_thread_ident();
        Py_XSETREF(mine, number);
    }
    if (add_to(&w->calls, one)) return NULL;
    set(&w->arguments, arguments);
    set(&w->thread, mine);
    PyObject *grad = set_state(n_run, (PyObject *)w) ? NULL : get_state(n_grad);
    PyObject *kind = grad ? PyDict_GetItemWithError(dtypes, n__default) : NULL;
    if (!kind) return NULL;
    if (grad != Py_True) {
        PyObject *stack[] = {(PyObject *)w, n_grad, Py_False}, *done = PyObject_VectorcallMethod(n_event, stack, 3, NULL);
        Py_XDECREF(done);
        if (!done) return NULL;
    }
    if (kind != PyDict_GetItemWithError(dtypes, n_float32)) {
        PyObject *stack[] = {(PyObject *)w, default_dtype, kind}, *done = PyObject_VectorcallMethod(n_event, stack, 3, NULL);
        Py_XDECREF(done);
        if (!done) return NULL;
    }
    Py_RETURN_NONE;
}

static PyObject *walk_begin(Walk *w, PyObject *const *args, Py_ssize_t nargs) {
    if (nargs != 2) return PyErr_SetString(PyExc_TypeError, "begin(args, kwargs)"), NULL;
    PyObject *arguments = PyTuple_Pack(2, args[0], args[1]), *done = arguments ? begin(w, arguments) : NULL;
    Py_XDECREF(arguments);
    return done;
}

static PyObject *walk_end(Walk *w, PyObject *unused) {
    PyObject *stack[] = {call_ended, Py_True}, *done = flush(w, stack, 1, keywords, 1);
    if (!done) {
        PyObject *type, *error, *trace, *self[] = {(PyObject *)w};
        PyErr_Fetch(&type, &error, &trace);
        PyObject *abandoned = PyObject_VectorcallMethod(n_abandon, self, 1, NULL);
        if (abandoned) {
            PyErr_Restore(type, error, trace);
        } else {
            Py_XDECREF(type);
            Py_XDECREF(error);
            Py_XDECREF(trace);
        }
        Py_XDECREF(abandoned);
        return NULL;
    }
    Py_DECREF(done);
    if (get_state(n_run) != Py_None && set_state(n_run, Py_None)) return NULL;
    set(&w->thread, zero);
    set(&w->arguments, Py_None);
    Py_RETURN_NONE;
}

// ------------------------------------------------------------------------------------------------ the cursor and other threads

static PyObject *walk_hold(Walk *w, PyObject *unused) {
    if (w->cur == HELD) Py_RETURN_NONE;
    PyObject *end = Py_NewRef(w->cur);
    set(&w->cur, HELD);
    return end;
}

static PyObject *walk_give_back(Walk *w, PyObject *end) {
    if (w->cur == HELD) set(&w->cur, end);
    Py_RETURN_NONE;
}

static PyMemberDef walk_members[] = {
#define MEMBER(name) {#name, T_OBJECT_EX, offsetof(Walk, name), 0, NULL},
    WALK_OBJECTS(MEMBER)
    {"inside", T_INT, offsetof(Walk, inside), READONLY, NULL},
    {NULL},
};

static PyMethodDef walk_methods[] = {
    {"begin", (PyCFunction)(void (*)(void))walk_begin, METH_FASTCALL, NULL},
    {"end", (PyCFunction)walk_end, METH_NOARGS, NULL},
    {"step", (PyCFunction)(void (*)(void))walk_step, METH_FASTCALL, NULL},
    {"step_inplace", (PyCFunction)(void (*)(void))walk_step_inplace, METH_FASTCALL, NULL},
    {"update", (PyCFunction)(void (*)(void))walk_update, METH_FASTCALL, NULL},
    {"follow_backward", (PyCFunction)(void (*)(void))walk_follow_backward, METH_FASTCALL, NULL},
    {"flush", (PyCFunction)(void (*)(void))walk_flush, METH_FASTCALL | METH_KEYWORDS, NULL},
    {"_hold", (PyCFunction)walk_hold, METH_NOARGS, NULL},
    {"_give_back", (PyCFunction)walk_give_back, METH_O, NULL},
    {NULL},
};

static PyTypeObject WalkType = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "torchlet_walk.Walk",
    .tp_basicsize = sizeof(Walk),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC,
    .tp_traverse = (traverseproc)walk_traverse,
    .tp_clear = (inquiry)walk_clear,
    .tp_dealloc = (destructor)walk_dealloc,
    .tp_members = walk_members,
    .tp_methods = walk_methods,
    .tp_new = PyType_GenericNew,
};
