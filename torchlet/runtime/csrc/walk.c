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

#include "walk_objects.c"
#include "walk_twin.c"
#include "walk_run.c"
#include "walk_launch.c"
#include "walk_replay.c"
#include "walk_calls.c"
#include "walk_optimizer.c"

static vectorcallfunc kind_of(const char *name) {
    static const struct { const char *name; vectorcallfunc call; } kinds[] = {
        {"operator", operator_call}, {"activation", activation_call}, {"linear", linear_call}, {"sequential", sequential_call}, {"backward", backward_call},
        {"compiled", compiled_call}, {"with_grads", with_grads_call}, {"states_of", states_of_call}, {"begin_step", begin_step_call},
        {"apply_step", apply_step_call}, {"zero_grad", zero_grad_call}, {NULL},
    };
    int i = 0;
    while (kinds[i].name && strcmp(kinds[i].name, name)) i++;
    return kinds[i].call;
}

static PyMethodDef functions[] = {{"know", know, METH_VARARGS, NULL}, {"setup", setup, METH_VARARGS, NULL},
                                  {"setup_replay", setup_replay, METH_VARARGS, NULL}, {"again", (PyCFunction)(void (*)(void))again, METH_FASTCALL, NULL},
                                  {"setup_dispatch", setup_dispatch, METH_O, NULL}, {"apply", make_apply, METH_O, NULL},
                                  {"module_call", make_module_call, METH_VARARGS, NULL},
                                  {"setup_calls", setup_calls, METH_O, NULL},
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
    nothing = PyTuple_New(0);
    no_names = PyDict_New();
    call_ended = PyUnicode_InternFromString("the call ended");
    PyObject *module = PyModule_Create(&definition);
    if (!module || PyModule_AddType(module, &WalkType) || PyModule_AddType(module, &LaunchType) || PyModule_AddType(module, &TwinType))
        return NULL;
    return module;
}
