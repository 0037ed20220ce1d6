// Recurrent layers over a whole sequence: each thread keeps the weights of its hidden units packed in its cache and meets the others
// once a step; the gates are computed while their sums are in the first-level cache.
#include <string.h>
#include "tl_runtime.h"

enum { TL_RNN_TANH, TL_RNN_RELU, TL_LSTM, TL_GRU };  // as in compiler/native.py

#ifdef TL_F32
#define T float
#define S f32
#define TANH tl_tanh
#define SIGMOID tl_sigmoid
#define MAXIMUM tl_maximum
#include "tl_recurrent_template.h"
#undef T
#undef S
#undef TANH
#undef SIGMOID
#undef MAXIMUM
#endif

#ifdef TL_F64
#define T double
#define S f64
#define TANH tanh
#define SIGMOID tl_sigmoid_d
#define MAXIMUM tl_maximum_d
#include "tl_recurrent_template.h"
#undef T
#undef S
#endif
