// The ways in, by which Python comes to the walk: twins of op.apply and of nn.Module.__call__.

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
