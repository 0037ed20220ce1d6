// What an optimizer does in Python around its update operators, loops over parameters: twins of functions of optim/optimizer.py.

// with_grads(params)
static PyObject *with_grads_call(PyObject *self, PyObject *const *args, size_t nargsf, PyObject *kwnames) {
    if (PyVectorcall_NARGS(nargsf) == 1 && !kwnames && PyList_CheckExact(args[0])) {
        Py_ssize_t n = PyList_GET_SIZE(args[0]);
        PyObject *grads = PyList_New(n);
        for (Py_ssize_t i = 0; grads && i < n; i++) {
            PyObject *p = PyList_GET_ITEM(args[0], i), *g = is_tensor(p) ? FIELD(p, Tensor, _grad) : NULL;
            if (g && g != Py_None) PyList_SET_ITEM(grads, i, Py_NewRef(g));
            else Py_CLEAR(grads);
        }
        PyObject *out = grads ? PyTuple_Pack(2, args[0], grads) : NULL;
        Py_XDECREF(grads);
        if (out || PyErr_Occurred()) return out;
    }
    return by_plain(self, args, nargsf, kwnames);
}

// states_of(state, params)
static PyObject *states_of_call(PyObject *self, PyObject *const *args, size_t nargsf, PyObject *kwnames) {
    if (PyVectorcall_NARGS(nargsf) == 2 && !kwnames && PyDict_Check(args[0]) && PyList_CheckExact(args[1])) {
        Py_ssize_t n = PyList_GET_SIZE(args[1]);
        PyObject *states = PyList_New(n), *count = NULL;
        for (Py_ssize_t i = 0; states && i < n; i++) {
            PyObject *s = PyDict_GetItemWithError(args[0], PyList_GET_ITEM(args[1], i));
            PyObject *mine = s && PyDict_CheckExact(s) ? PyDict_GetItemWithError(s, n_step) : NULL;
            if (!count) count = mine;
            if (mine && mine == count) PyList_SET_ITEM(states, i, Py_NewRef(s));
            else Py_CLEAR(states);
        }
        PyObject *out = states ? PyTuple_Pack(2, states, Py_True) : NULL;
        Py_XDECREF(states);
        if (out || PyErr_Occurred()) return out;
    }
    return by_plain(self, args, nargsf, kwnames);
}

// the lists of an update operator: parameters, gradients, and of the states what they have under these names; NULL where one has not
static PyObject *lists_of(PyObject *params, PyObject *grads, PyObject *names, PyObject *states) {
    Py_ssize_t n = PyList_GET_SIZE(states), m = PyTuple_GET_SIZE(names);
    PyObject *lists = PyList_New(2 + m);
    if (!lists) return NULL;
    PyList_SET_ITEM(lists, 0, Py_NewRef(params));
    PyList_SET_ITEM(lists, 1, Py_NewRef(grads));
    for (Py_ssize_t k = 0; k < m; k++) {
        PyObject *list = PyList_New(n);
        for (Py_ssize_t i = 0; list && i < n; i++) {
            PyObject *s = PyList_GET_ITEM(states, i), *name = PyTuple_GET_ITEM(names, k);
            PyObject *x = PyDict_CheckExact(s) ? PyDict_GetItemWithError(s, name) : NULL;
            if (x) PyList_SET_ITEM(list, i, Py_NewRef(x));
            else Py_CLEAR(list);
        }
        if (!list) return Py_DECREF(lists), NULL;
        PyList_SET_ITEM(lists, 2 + k, list);
    }
    return lists;
}

// Optimizer._begin(self, closure): without a closure, and nobody who wants to know
static PyObject *begin_step_call(PyObject *self, PyObject *const *args, size_t nargsf, PyObject *kwnames) {
    PyObject *run = PyVectorcall_NARGS(nargsf) == 2 && !kwnames && args[1] == Py_None ? get_state(n_run) : Py_None;
    if (!run) return NULL;
    if ((PyObject *)Py_TYPE(run) != Led) return by_plain(self, args, nargsf, kwnames);
    return PyObject_SetAttr(args[0], n__opt_called, Py_True) ? NULL : Py_NewRef(Py_None);
}

// Optimizer._apply(self, update, params, grads, states): in a walk
static PyObject *apply_step_call(PyObject *self, PyObject *const *args, size_t nargsf, PyObject *kwnames) {
    PyObject *run = PyVectorcall_NARGS(nargsf) == 5 && !kwnames ? get_state(n_run) : Py_None, *lists = NULL, *name, *value;
    if (!run) return NULL;
    PyObject *update = run != Py_None ? args[1] : NULL, *states = run != Py_None ? args[4] : NULL;
    if ((PyObject *)Py_TYPE(run) == Led && PyTuple_CheckExact(update) && PyTuple_GET_SIZE(update) == 5 && PyList_CheckExact(states)) {
        PyObject *names = PyTuple_GET_ITEM(update, 1), *after = PyTuple_GET_ITEM(update, 4);
        if (PyTuple_CheckExact(names) && PyDict_CheckExact(after)) lists = lists_of(args[2], args[3], names, states);
        if (!lists && PyErr_Occurred()) return NULL;
    }
    if (!lists) return by_plain(self, args, nargsf, kwnames);
    PyObject *stack[] = {PyTuple_GET_ITEM(update, 0), lists, PyTuple_GET_ITEM(update, 2), PyTuple_GET_ITEM(update, 3)};
    Py_INCREF(run);
    PyObject *done = walk_update((Walk *)run, stack, 4);
    Py_DECREF(run);
    Py_DECREF(lists);
    for (Py_ssize_t at = 0; done && PyDict_Next(PyTuple_GET_ITEM(update, 4), &at, &name, &value);)
        for (Py_ssize_t k = 0; done && k < PyList_GET_SIZE(states); k++)
            if (PyDict_SetItem(PyList_GET_ITEM(states, k), name, value)) Py_CLEAR(done);
    return done;
}

// Optimizer.zero_grad(self)
static PyObject *zero_grad_call(PyObject *self, PyObject *const *args, size_t nargsf, PyObject *kwnames) {
    PyObject *groups = PyVectorcall_NARGS(nargsf) == 1 && !kwnames ? PyObject_GetAttr(args[0], n_param_groups) : NULL;
    int good = groups && PyList_CheckExact(groups);
    for (Py_ssize_t i = 0; good && i < PyList_GET_SIZE(groups); i++) {
        PyObject *group = PyList_GET_ITEM(groups, i), *params = PyDict_CheckExact(group) ? PyDict_GetItemWithError(group, n_params) : NULL;
        good = params && PyList_CheckExact(params);
        Py_XINCREF(params);
        for (Py_ssize_t k = 0; good && k < PyList_GET_SIZE(params); k++) {
            PyObject *p = PyList_GET_ITEM(params, k);
            if ((good = is_tensor(p))) set(&FIELD(p, Tensor, _grad), Py_None);
        }
        Py_XDECREF(params);
    }
    Py_XDECREF(groups);
    if (good) Py_RETURN_NONE;
    PyErr_Clear();
    return by_plain(self, args, nargsf, kwnames);
}
