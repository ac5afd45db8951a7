// The loops of all kernels, over a type V of vector registers that each instruction set defines.
//
// V::kLanes float or int32 lanes; V::tile(lanes) rows are multiplied at a time with so many columns, as many as keep their sums in
// registers; V::Half has registers of at most 8 lanes. Included by one file an instruction set, inside an anonymous namespace: two files must
// not share compiled code, since each is compiled for other processors. Sums of floats are made in one order everywhere, and
// products and sums are never fused, so that every instruction set gives the same scores to the bit.
//
// The files of loops/ are parts of this one: they are included below, inside that namespace, in the order in which they use one another.
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
#include "loops/postings.h"
#include "loops/words.h"
#include "loops/row_maxima.h"
#include "loops/rotation.h"
#include "loops/compressing.h"
#include "loops/mish.h"
#include "loops/relation.h"

template <class V>
Isa isa_of(const char* name) {
  return {name, residual_maxsim<V>, relation_maxsim<V>, centroid_maxsim<V>, byte_maxsim<V>, score_postings<V>, word_products<V, float>,
          word_products<V, Score>, word_nearest<V>,
          row_maxima<V>, byte_table<V>, reached<V>, compress<V>, rotate<V>, V::to_floats, to_words<V>};
}

}  // namespace
