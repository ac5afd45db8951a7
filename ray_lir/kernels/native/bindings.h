// The functions with which each file of the module registers its bindings.
#pragma once
#include <nanobind/nanobind.h>

namespace nb = nanobind;

namespace ray_lir {

void add_sets(nb::module_& m);
void add_maxsim(nb::module_& m);
void add_relation(nb::module_& m);
void add_centroids(nb::module_& m);
void add_postings(nb::module_& m);
void add_clustering(nb::module_& m);
void add_compressing(nb::module_& m);
void add_top_k(nb::module_& m);
void add_encoding(nb::module_& m);

}  // namespace ray_lir
