// The walk along a known path, for CPython: what op.apply and compiler/{capture,host,replay,advance}.py say in Python, done without its
// interpreter.
//
// The Python code is the specification. Every function here either does what its Python twin does, or finds that the case is not the
// common one before it has changed anything (but slots, which the twin binds anew), and calls the twin. Fields that lie in slots (of
// tensors, steps, paths) are read where their member descriptors say; what `del` has emptied is NULL, and never the common case.
//
// `inside` counts how deep this thread is in here: frames of capture.py tell other threads that the owner is in the middle of a step,
// and C has no frame. It is 0 while a twin runs, for that has a frame and may wait for another thread.
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <structmember.h>
#include <stdint.h>

// ------------------------------------------------------------------------------------------------ what setup() is told

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
    X(is_plain) X(exported) X(launch) X(made) X(ask) X(_update) X(param_groups) X(state) X(autocast) X(_execute) X(_hooked) X(forward) X(__dict__) X(passes) X(acquire) X(release) X(stepwise) X(_failure) X(_run_stepwise) X(abandon)
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

// ------------------------------------------------------------------------------------------------ the base of Run

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

static PyObject *walk_step(Walk *w, PyObject *const *args, Py_ssize_t nargs) {
    if (nargs != 3 || !PyTuple_CheckExact(args[1])) return twin(n_step, w, args, nargs, NULL);
    PyObject *s = FIELD(w->cur, Step, next), *inputs = args[1], *out = NULL;
    if (s != Py_None && FIELD(s, Step, functional) == args[0]) {
        Py_INCREF(s);
        w->inside++;
        int same = same_attrs(FIELD(s, Step, attrs), args[2]);
        if (same == 1) same = match_all(w, FIELD(s, Step, checks), NULL, &PyTuple_GET_ITEM(inputs, 0), PyTuple_GET_SIZE(inputs));
        if (same == 1) {
            set(&w->cur, s);
            out = place(w, s);
        }
        w->inside--;
        Py_DECREF(s);
        if (same) return out;
    }
    PyObject *stack[] = {(PyObject *)w, args[0], args[1], args[2]};
    return PyObject_VectorcallMethod(n__record_op, stack, 4, NULL);
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
    if (n <= 8) {
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

// tensors, gradients, retain_graph, create_graph, inputs
static PyObject *walk_follow_backward(Walk *w, PyObject *const *args, Py_ssize_t nargs) {
    if (nargs != 5 || w->cur == HELD || !w->copies || PyDict_GET_SIZE(w->copies) || !PyTuple_CheckExact(args[0]) || !PyTuple_CheckExact(args[1]) || PyTuple_GET_SIZE(args[0]) != 1 ||
        PyTuple_GET_ITEM(args[1], 0) != Py_None || !PyBool_Check(args[2]) || args[3] != Py_False || args[4] != Py_None ||
        !is_tensor(PyTuple_GET_ITEM(args[0], 0)) || !FIELD(PyTuple_GET_ITEM(args[0], 0), Tensor, _step))
        return twin(n_follow_backward, w, args, nargs, NULL);
    PyObject *t = PyTuple_GET_ITEM(args[0], 0), *key;
    if (!is_pending(t)) Py_RETURN_FALSE;
    if (!(key = PyTuple_Pack(2, FIELD(t, Tensor, _step), args[2]))) return NULL;
    PyObject *m = PyDict_GetItemWithError(FIELD(w->cur, Step, macros), key);
    Py_DECREF(key);
    if (!m) return PyErr_Occurred() ? NULL : Py_NewRef(Py_False);
    Py_INCREF(m);
    w->inside++;
    int good = stride(w, m);
    w->inside--;
    Py_DECREF(m);
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

static PyObject *walk_begin(Walk *w, PyObject *const *args, Py_ssize_t nargs) {
    PyObject *arguments = nargs == 2 ? PyTuple_Pack(2, args[0], args[1]) : NULL;
    PyObject *calls = arguments ? PyNumber_Add(w->calls, one) : NULL, *thread = PyLong_FromUnsignedLong(PyThread_get_thread_ident());
    int failed = !calls || !thread;
    if (!failed) {
        set(&w->arguments, arguments);
        set(&w->calls, calls);
        set(&w->thread, thread);
        failed = set_state(n_run, (PyObject *)w);
    }
    Py_XDECREF(arguments);
    Py_XDECREF(calls);
    Py_XDECREF(thread);
    PyObject *grad = failed ? NULL : get_state(n_grad), *kind = failed ? NULL : PyDict_GetItemWithError(dtypes, n__default);
    if (!grad || !kind) return NULL;
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

// ------------------------------------------------------------------------------------------------ the launch of a program

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
    int returns;
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
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(l->written); i++) {
        PyObject *pair = PyList_GET_ITEM(l->written, i), *store = store_of(FIELD(PyTuple_GET_ITEM(pair, 0), Slot, t));
        if (!store) return PyErr_SetString(PyExc_TypeError, "launch: an overwritten input is no tensor"), -1;
        if (add_to(&FIELD(store, Storage, version), PyTuple_GET_ITEM(pair, 1))) return -1;
    }
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
    Py_BEGIN_ALLOW_THREADS
    failed = l->function(l->argument);
    Py_END_ALLOW_THREADS
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
                            "fail", "owner", "pointers", "scalars", "argument", "function", NULL};
    PyObject *inputs, *pools, *indices, *written, *bound, *address, *arena, *move, *nothing, *pack, *fail, *owner, *kinds;
    unsigned long long pointers, scalars, argument, function;
    int returns;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O!O!O!UO!O!pOOOOOOOKKKK", names, &PyList_Type, &inputs, &PyList_Type, &pools, &PyTuple_Type,
                                     &indices, &kinds, &PyList_Type, &written, &PyList_Type, &bound, &returns, &address, &arena, &move, &nothing,
                                     &pack, &fail, &owner, &pointers, &scalars, &argument, &function))
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
    l->function = (native)(uintptr_t)function, l->returns = returns, l->thread = 0;  // thread states count from 1
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

// ------------------------------------------------------------------------------------------------ the module

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

// ------------------------------------------------------------------------------------------------ replay: the twin of Replayer.call

#define REPLAY_FIELDS(X) \
    X(Replayer, lock) X(Replayer, ready) X(Signature, key) X(Signature, plan) X(Signature, calls) X(Signature, check) X(Signature, replayed) \
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
    PyObject *stack[] = {FIELD(args[0], Replayer, lock), Py_False}, *held = PyObject_VectorcallMethod(n_acquire, stack, 2, NULL);
    if (held != Py_True) {
        Py_XDECREF(held);
        return held ? Py_NewRef(Py_NotImplemented) : NULL;
    }
    Py_DECREF(held);
    PyObject *out = call_again(args[0], args[1], args[2]), *type, *error, *trace;
    PyErr_Fetch(&type, &error, &trace);
    PyObject *let_go = PyObject_VectorcallMethod(n_release, stack, 1, NULL);
    Py_XDECREF(let_go);
    if (type || let_go) PyErr_Restore(type, error, trace);
    else Py_CLEAR(out);
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

// ------------------------------------------------------------------------------------------------ the twin of op.apply

static PyObject *Led, *op_names, *autocasting;  // the class of walks, the names of op.py, and one of them: a list

// apply(op, inputs, attrs=())
static PyObject *apply(PyObject *module, PyObject *const *args, Py_ssize_t nargs) {
    static PyObject *nothing;
    if (!nothing && !(nothing = PyTuple_New(0))) return NULL;
    if (nargs != 2 && nargs != 3) return PyErr_SetString(PyExc_TypeError, "apply(op, inputs, attrs=())"), NULL;
    PyObject *casts = PyList_GET_SIZE(autocasting) ? get_state(n_autocast) : Py_None, *cast = NULL, *out = NULL;
    PyObject *given[] = {NULL, args[0], args[1], nargs == 3 ? args[2] : nothing};
    if (!casts) return NULL;
    if (casts != Py_None) {
        if (!(cast = PyObject_Vectorcall(casts, given + 1, 2, NULL))) return NULL;
        given[2] = cast;
    }
    PyObject *run = given[0] = get_state(n_run);
    if (run == Py_None) {
        PyObject *execute = PyDict_GetItemWithError(op_names, n__execute);
        if (execute) out = PyObject_Vectorcall(execute, given + 1, 3, NULL);
    } else if (run) {
        Py_INCREF(run);
        out = (PyObject *)Py_TYPE(run) == Led ? walk_step((Walk *)run, given + 1, 3) : PyObject_VectorcallMethod(n_step, given, 4, NULL);
        Py_DECREF(run);
    }
    Py_XDECREF(cast);
    return out;
}

static PyMethodDef apply_method = {"apply", (PyCFunction)(void (*)(void))apply, METH_FASTCALL, NULL};

// apply(names of op.py): the function
static PyObject *make_apply(PyObject *module, PyObject *names) {
    PyObject *casting = PyDict_Check(names) ? PyDict_GetItemString(names, "AUTOCASTING") : NULL;
    if (!casting || !PyList_Check(casting)) return PyErr_SetString(PyExc_TypeError, "apply(names of op.py)"), NULL;
    op_names = Py_NewRef(names);
    autocasting = Py_NewRef(casting);
    return PyCFunction_New(&apply_method, NULL);
}

// setup_dispatch(class of walks)
static PyObject *setup_dispatch(PyObject *module, PyObject *class) {
    Led = Py_NewRef(class);
    Py_RETURN_NONE;
}

// ------------------------------------------------------------------------------------------------ the twin of nn.Module.__call__

static PyObject *plain_call, *everywhere, *name_module;  // the Python it stands for, hooks of all modules, and who names an error's module

static PyObject *call_module(PyObject *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames) {
    PyObject *stack[] = {self, nargs ? args[0] : NULL}, *out;
    if (nargs == 1 && !kwnames && !PyDict_GET_SIZE(everywhere)) {
        PyObject *hooked = PyObject_GetAttr(self, n__hooked);
        Py_XDECREF(hooked);  // False does not die
        if (!hooked) PyErr_Clear();
        if (hooked == Py_False) {
            if (Py_EnterRecursiveCall(" in a module")) return NULL;
            out = PyObject_VectorcallMethod(n_forward, stack, 2, NULL);
            Py_LeaveRecursiveCall();
            if (out || !(PyErr_ExceptionMatches(PyExc_RuntimeError) || PyErr_ExceptionMatches(PyExc_IndexError))) return out;
            PyObject *type, *error, *trace;
            PyErr_Fetch(&type, &error, &trace);
            PyErr_NormalizeException(&type, &error, &trace);
            if (trace) PyException_SetTraceback(error, trace);
            PyObject *failed[] = {error, self}, *named = PyObject_Vectorcall(name_module, failed, 2, NULL);
            if (named) {
                PyErr_Restore(type, error, trace);
                Py_DECREF(named);
            } else {
                Py_XDECREF(type);
                Py_XDECREF(error);
                Py_XDECREF(trace);
            }
            return NULL;
        }
    }
    Py_ssize_t n = nargs + (kwnames ? PyTuple_GET_SIZE(kwnames) : 0);
    PyObject **all = PyMem_Malloc((n + 1) * sizeof *all);
    if (!all) return PyErr_NoMemory();
    all[0] = self;
    for (Py_ssize_t i = 0; i < n; i++) all[i + 1] = args[i];
    out = PyObject_Vectorcall(plain_call, all, nargs + 1, kwnames);
    PyMem_Free(all);
    return out;
}

static PyMethodDef call_method = {"__call__", (PyCFunction)(void (*)(void))call_module, METH_FASTCALL | METH_KEYWORDS, NULL};

// module_call(Module, __call__, hooks of all modules, _name_module): the method
static PyObject *make_module_call(PyObject *module, PyObject *names) {
    PyObject *Module;
    if (!PyArg_ParseTuple(names, "O!OO!O", &PyType_Type, &Module, &plain_call, &PyDict_Type, &everywhere, &name_module)) return NULL;
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(names); i++) Py_INCREF(PyTuple_GET_ITEM(names, i));  // for good
    return PyDescr_NewMethod((PyTypeObject *)Module, &call_method);
}

static PyMethodDef functions[] = {{"know", know, METH_VARARGS, NULL}, {"setup", setup, METH_VARARGS, NULL},
                                  {"setup_replay", setup_replay, METH_VARARGS, NULL}, {"again", (PyCFunction)(void (*)(void))again, METH_FASTCALL, NULL},
                                  {"setup_dispatch", setup_dispatch, METH_O, NULL}, {"apply", make_apply, METH_O, NULL},
                                  {"module_call", make_module_call, METH_VARARGS, NULL},
                                  {NULL}};
static PyModuleDef definition = {PyModuleDef_HEAD_INIT, "torchlet_walk", NULL, -1, functions};

PyMODINIT_FUNC PyInit_torchlet_walk(void) {
#define INTERN(name) if (!(n_##name = PyUnicode_InternFromString(#name))) return NULL;
    NAMES(INTERN)
    zero = PyLong_FromLong(0);
    one = PyLong_FromLong(1);
    minus_one = PyLong_FromLong(-1);
    empty = PyUnicode_InternFromString("");
    keywords = PyTuple_Pack(1, n_last);
    default_dtype = PyUnicode_InternFromString("default dtype");
    call_ended = PyUnicode_InternFromString("the call ended");
    PyObject *module = PyModule_Create(&definition);
    if (!module || PyModule_AddType(module, &WalkType) || PyModule_AddType(module, &LaunchType)) return NULL;
    return module;
}
