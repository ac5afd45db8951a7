// The Python module: the version that native.py expects, and the functions of all files.
#include "bindings.h"

NB_MODULE(ray_lir_native, m) {
  using namespace ray_lir;
  m.attr("__doc__") = "Compiled kernels of ray_lir; use ray_lir.kernels.select('native').";
  m.attr("ABI") = 14;
  add_sets(m);
  add_maxsim(m);
  add_relation(m);
  add_centroids(m);
  add_postings(m);
  add_clustering(m);
  add_compressing(m);
  add_top_k(m);
  add_encoding(m);
}
