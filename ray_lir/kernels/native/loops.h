// The loops of all kernels, over a type V of vector registers that each instruction set defines.
//
// A register has V::kLanes float or int32 lanes. V::tile(lanes) is the number of rows to multiply with that many columns at a time, such that
// their sums stay in registers. V::Half has registers of at most 8 lanes. One file of each instruction set includes this file inside an
// anonymous namespace, because code compiled for one processor must not be linked into the code for another. Sums of floats have the same
// order everywhere, and products and sums are never fused, so all instruction sets give the same scores to the bit.
//
// The files of loops/ are parts of this file. They are included below, inside that namespace, in the order of their dependencies.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <type_traits>

#include "isa.h"

namespace {
using namespace ray_lir;

#include "loops/lanes.h"
#include "loops/sums.h"
#include "loops/shards.h"
#include "loops/decoding.h"
#include "loops/products.h"
#include "loops/scores.h"
#include "loops/blocks.h"
#include "loops/residual_maxsim.h"
#include "loops/centroids.h"
#include "loops/nearest.h"
#include "loops/postings.h"
#include "loops/words.h"
#include "loops/row_maxima.h"
#include "loops/rotation.h"
#include "loops/compressing.h"
#include "loops/mish.h"
#include "loops/relation.h"
#include "loops/encoding.h"

template <class V>
Isa isa_of(const char* name) {
  return {name, residual_maxsim<V>, relation_maxsim<V>, centroid_maxsim<V>, byte_maxsim<V>, nearest_maxsim<V>, score_postings<V>, word_products<V, float>,
          word_products<V, Score>, word_nearest<V>,
          row_maxima<V>, byte_table<V>, reached<V>, compress<V>, rotate<V>, V::to_floats, to_words<V>, mix<V>, quantized_linear<V>, encode_layers<V>};
}

}  // namespace
