// The ways in, by which Python comes to the walk: twins of op.apply, of methods of Tensor and layers that do nothing else, of backward, and
// of the calls of modules and of compiled functions.

// ------------------------------------------------------------------------------------------------ the twin of op.apply

static PyObject *Led, *op_names, *autocasting;  // the class of walks, the names of op.py, and one of them: a list
static PyObject *nothing, *no_names;             // an empty tuple, an empty dictionary

// apply(op, inputs, attrs=())
static PyObject *apply(PyObject *module, PyObject *const *args, Py_ssize_t nargs) {
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

// ------------------------------------------------------------------------------------------------ functions that apply one operator

// the walk of this thread, if operations are to go to it as they are; None else; NULL with an exception
static inline PyObject *walk_here(void) {
    PyObject *run = get_state(n_run);
    if (!run || (PyObject *)Py_TYPE(run) != Led) return run ? Py_None : NULL;
    PyObject *casts = PyList_GET_SIZE(autocasting) ? get_state(n_autocast) : Py_None;
    return casts == Py_None ? run : casts ? Py_None : NULL;
}

// (self, operands) -> apply(op, operands), whatever else the Python looks at: an operation that the walk expects is done, no other
static PyObject *operator_call(PyObject *self, PyObject *const *args, size_t nargsf, PyObject *kwnames) {
    Twin *t = (Twin *)self;
    PyObject *run = PyVectorcall_NARGS(nargsf) == t->first + t->n && !kwnames ? walk_here() : Py_None, *out = NULL;
    if (!run) return NULL;
    if (run != Py_None) {
        PyObject *const *operands = args + t->first, *turned[] = {operands[t->n - 1], operands[0]};
        Py_INCREF(run);
        int same = follow((Walk *)run, t->op, t->reflected ? turned : operands, t->n, nothing, &out);
        Py_DECREF(run);
        if (same) return out;
    }
    return by_plain(self, args, nargsf, kwnames);
}

// the same of a module, unless it is to overwrite its input
static PyObject *activation_call(PyObject *self, PyObject *const *args, size_t nargsf, PyObject *kwnames) {
    PyObject *overwrites = PyVectorcall_NARGS(nargsf) == 2 ? PyObject_GetAttr(args[0], n_inplace) : NULL;
    if (!overwrites) PyErr_Clear();
    Py_XDECREF(overwrites);  // False does not die
    return (overwrites == Py_False ? operator_call : by_plain)(self, args, nargsf, kwnames);
}

// Linear.forward: its operators are those with and without a bias. An attribute may be computed, so each is asked for once
static PyObject *linear_call(PyObject *self, PyObject *const *args, size_t nargsf, PyObject *kwnames) {
    if (PyVectorcall_NARGS(nargsf) != 2 || kwnames) return by_plain(self, args, nargsf, kwnames);
    PyObject *bias = PyObject_GetAttr(args[0], n_bias), *weight = bias ? PyObject_GetAttr(args[0], n_weight) : NULL, *out = NULL;
    int has = bias != Py_None;
    PyObject *inputs = weight ? has ? PyTuple_Pack(3, args[1], weight, bias) : PyTuple_Pack(2, args[1], weight) : NULL;
    if (inputs) {
        PyObject *stack[] = {has ? ((Twin *)self)->op : ((Twin *)self)->other, inputs};
        out = apply(NULL, stack, 2);
    }
    Py_XDECREF(inputs);
    Py_XDECREF(weight);
    Py_XDECREF(bias);
    return out;
}

// Sequential.forward
static PyObject *sequential_call(PyObject *self, PyObject *const *args, size_t nargsf, PyObject *kwnames) {
    PyObject *modules = PyVectorcall_NARGS(nargsf) == 2 && !kwnames ? PyObject_GetAttr(args[0], n__modules) : NULL;
    if (!modules || !PyDict_Check(modules)) {
        if (!modules) PyErr_Clear();
        Py_XDECREF(modules);
        return by_plain(self, args, nargsf, kwnames);
    }
    Py_ssize_t size = PyDict_GET_SIZE(modules), at = 0;
    PyObject *out = Py_NewRef(args[1]), *name, *m;
    while (out && PyDict_Next(modules, &at, &name, &m)) {
        Py_INCREF(m);
        Py_SETREF(out, PyObject_CallOneArg(m, out));
        Py_DECREF(m);
        if (out && PyDict_GET_SIZE(modules) != size) {
            PyErr_SetString(PyExc_RuntimeError, "dictionary changed size during iteration");
            Py_CLEAR(out);
        }
    }
    Py_DECREF(modules);
    return out;
}

// Tensor.backward: a pass that is known
static PyObject *backward_call(PyObject *self, PyObject *const *args, size_t nargsf, PyObject *kwnames) {
    PyObject *run = PyVectorcall_NARGS(nargsf) != 1 || kwnames ? Py_None : get_state(n_run);
    if (!run) return NULL;
    if ((PyObject *)Py_TYPE(run) == Led && may_stride((Walk *)run, args[0])) {
        Py_INCREF(run);
        int good = stride_from((Walk *)run, args[0], Py_False);
        Py_DECREF(run);
        if (good) return good < 0 ? NULL : Py_NewRef(Py_None);
    }
    return by_plain(self, args, nargsf, kwnames);
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

// ------------------------------------------------------------------------------------------------ the twin of CompiledFunction.__call__

#define COMPILED_FIELDS(X) X(Compiled, function) X(Compiled, replayer) X(Compiled, paths) X(Compiled, _idle) X(Compiled, _uncompiled)
COMPILED_FIELDS(OFFSET)
static PyObject *Compiled;
static PyObject *named_arguments(PyObject *const *values, PyObject *names) {
    PyObject *dict = PyDict_New();
    for (Py_ssize_t i = 0; dict && i < PyTuple_GET_SIZE(names); i++)
        if (PyDict_SetItem(dict, PyTuple_GET_ITEM(names, i), values[i])) Py_CLEAR(dict);
    return dict;
}

// what a call leaves: the walk stands at its start again, and may be used by the next
static int leave(PyObject *self, PyObject *idle, Walk *w, PyObject *names) {
    PyObject *done = walk_end(w, NULL), *most = done ? PyDict_GetItemWithError(names, n_MAX_PATHS) : NULL;
    if (most && PyList_GET_SIZE(FIELD(self, Compiled, paths)) > PyLong_AsSsize_t(most)) {
        Py_DECREF(done);
        done = PyObject_CallMethod(self, "_forget", "Oi", w, 2);
    }
    PyObject *type, *error, *trace;
    PyErr_Fetch(&type, &error, &trace);
    if (PyList_Append(idle, (PyObject *)w)) PyErr_Clear();  // then it is not used again
    PyErr_Restore(type, error, trace);
    Py_XDECREF(done);
    return done ? 0 : -1;
}

static PyObject *follow_call(PyObject *self, Walk *w, PyObject *arguments, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames,
                             PyObject *names) {
    PyObject *idle = FIELD(self, Compiled, _idle), *begun = begin(w, arguments), *out = NULL;
    if (begun) out = PyObject_Vectorcall(FIELD(self, Compiled, function), args, nargs, kwnames);
    Py_XDECREF(begun);
    Py_INCREF(idle);
    if (out) {
        if (leave(self, idle, w, names)) Py_CLEAR(out);
    } else {  // as a finally clause: the error is being handled, and one that comes meanwhile knows of it
        PyObject *type, *error, *trace, *outer = PyErr_GetHandledException();
        PyErr_Fetch(&type, &error, &trace);
        PyErr_NormalizeException(&type, &error, &trace);
        if (trace) PyException_SetTraceback(error, trace);
        PyErr_SetHandledException(error);
        int failed = leave(self, idle, w, names);
        PyErr_SetHandledException(outer);
        Py_XDECREF(outer);
        if (!failed) {
            PyErr_Restore(type, error, trace);
        } else {
            Py_XDECREF(type);
            Py_XDECREF(error);
            Py_XDECREF(trace);
        }
    }
    Py_DECREF(idle);
    return out;
}

// CompiledFunction.__call__; it knows the names of function.py
static PyObject *compiled_call(PyObject *twin, PyObject *const *all, size_t nargsf, PyObject *kwnames) {
    Py_ssize_t nargs = PyVectorcall_NARGS(nargsf) - 1;
    if (nargs < 0 || !PyObject_TypeCheck(all[0], (PyTypeObject *)Compiled)) return by_plain(twin, all, nargsf, kwnames);
    PyObject *self = all[0], *const *args = all + 1;
    PyObject *replayer = FIELD(self, Compiled, replayer), *idle = FIELD(self, Compiled, _idle), *around = get_state(n_run), *out = NULL;
    if (!around) return NULL;
    if (!replayer || !idle) goto plain;  // not made yet
    int ready = replayer != Py_None && around == Py_None && FIELD(replayer, Replayer, ready) != Py_None;
    if (!ready && (around != Py_None || PyUnicode_GET_LENGTH(FIELD(self, Compiled, _uncompiled)))) {  // inside another: followed inline
        PyObject *function = Py_NewRef(FIELD(self, Compiled, function));
        out = PyObject_Vectorcall(function, args, nargs, kwnames);
        Py_DECREF(function);
        return out;
    }
    if (!ready && (replayer != Py_None || !PyList_GET_SIZE(idle))) goto plain;
    PyObject *positions = PyTuple_New(nargs), *names = kwnames ? named_arguments(args + nargs, kwnames) : Py_NewRef(no_names);
    for (Py_ssize_t i = 0; positions && i < nargs; i++) PyTuple_SET_ITEM(positions, i, Py_NewRef(args[i]));
    if (!positions || !names) {
        Py_XDECREF(positions);
        Py_XDECREF(names);
        return NULL;
    }
    if (ready) {
        PyObject *stack[] = {Py_NewRef(replayer), positions, names};
        out = again(NULL, stack, 3);
        Py_DECREF(replayer);
    } else {
        PyObject *arguments = PyTuple_Pack(2, positions, names);
        Py_ssize_t last = PyList_GET_SIZE(idle) - 1;  // looked at here: a finalizer may have made a call of its own meanwhile
        PyObject *w = last < 0 ? Py_None : PyList_GET_ITEM(idle, last);
        if (arguments && (PyObject *)Py_TYPE(w) == Led) {
            Py_INCREF(w);
            if (!PyList_SetSlice(idle, last, last + 1, NULL))
                out = follow_call(self, (Walk *)w, arguments, args, nargs, kwnames, ((Twin *)twin)->other);
            Py_DECREF(w);
        } else if (arguments) {
            out = Py_NewRef(Py_NotImplemented), ready = 1;
        }
        Py_XDECREF(arguments);
    }
    Py_DECREF(positions);
    Py_DECREF(names);
    if (out != Py_NotImplemented || !ready) return out;
    Py_DECREF(out);
plain:
    return by_plain(twin, all, nargsf, kwnames);
}

// setup_calls(CompiledFunction)
static PyObject *setup_calls(PyObject *module, PyObject *class) {
    Compiled = Py_NewRef(class);
    COMPILED_FIELDS(READ)
    Py_RETURN_NONE;
}
