// The kernels of one instruction set: what each is given, and the table of functions that every set fills.
//
// Shapes: T tokens, N documents, C centroids, D dimensions, P packed bytes a token, n query tokens, L lanes = n rounded up
// to a multiple of 8. Whoever calls checks shapes and owns all memory; nothing here allocates or throws.
//
// Queries are packed so that a vector register holds the same few dimensions of several query tokens, and a document
// token's few dimensions are broadcast to all of them: a product needs no horizontal sum.
//   bytes: [L / 16 rounded up][stride / 4][16][4] int8, stride = D rounded up to a multiple of 64 and filled with zeros; dimensions in
//   the order of decoded rows, which with 4 bits is: of every whole 64 dimensions first the even ones, then the odd ones
//   words: [L / 16 rounded up][pairs][16][2] int16, pairs = D / 2 rounded up
// Centroid scores are float16: a query's table of them is looked into at random, and half as large it stays in nearer caches.
#pragma once
#include <cstdint>

namespace ray_lir {

typedef uint16_t Score;              // float16

constexpr int kGroup = 16;           // query tokens packed together
constexpr int kStep = 8;             // lanes are a multiple of
constexpr int kRows = 32;            // document tokens decoded together: they stay in the first-level cache
constexpr int kMoreRows = 8;         // memory after them, which is multiplied and not looked at
constexpr int kLanesTogether = 32;   // query tokens whose products with a block a matrix unit makes together
constexpr int64_t kTogether = 1280;         // tokens of documents that are aligned together, unless one has more
constexpr int64_t kDocumentsTogether = 32;
constexpr int64_t kFew = 8;                // candidates of a query token whose relations are computed with those of others
constexpr int kMishLines = 32;
constexpr int kMishLeast = -21;      // where the first begins, in lengths of a line
constexpr float kLargestScore = 65504;  // that float16 holds
constexpr int kWordBits = 14;        // words are values times 2^14: products of unit vectors fit 32 bits
constexpr float kWordScale = 1.0f / (1 << (2 * kWordBits));

// How a packed residual becomes unsigned bytes: lut[byte] holds the dimensions of one packed byte. A byte is 64 plus a
// signed level of at most 63 steps, so two products with signed bytes fit 16 bits.
struct Decoder {
  int nbits;
  int64_t quads;                // D / 4 rounded up: products stop there
  int64_t packed_bytes;         // P
  int64_t stride;               // bytes of a decoded row: D rounded up to a multiple of 64
  const uint8_t* lut;           // [256][8 / nbits]
  const uint8_t* levels;        // [2^nbits]
};

struct Shard {
  const void* codes;            // [T] uint16 or uint32
  bool wide_codes;
  const uint8_t* residuals;     // [T, P]
  const uint16_t* scales;       // [T, 2] float16: a decoded token is scales[0] centroid + scales[1] buckets
  const uint16_t* weights;      // [T] float16 or null: what a token weighs, less one
  const int64_t* doc_offsets;   // [N + 1]
};

struct PackedQuery {
  const int8_t* bytes;
  const int32_t* starts;        // [L rounded up to 16] what products begin with: -64 times the sum of the query token's bytes
  const float* slopes;          // [L] what one unit of an integer product is worth
  const Score* table;           // [C, L] centroid scores
  const float* weights;         // [L]
  float* best;                  // [L] scratch
  float* factors;               // [L] scratch: what the best token weighs
  float* all;                   // [tokens of a document, L]: every score, where they are wanted
  int64_t lanes;
};

struct Block {                  // some neighbouring tokens of a document, decoded
  int64_t place;                // of the document among those that are scored
  int64_t first, last;          // the document's tokens
  int64_t token;                // the first
  int64_t count;                // at most kRows
  uint8_t* rows;
  float* scales;                // [count, 2]
  float* weights;               // [count]
  int64_t next;                 // tokens that are scored after these: the first
  int64_t next_count;
};

typedef int32_t Products[kLanesTogether / kGroup][kRows][kGroup];  // of a block's tokens with query tokens

enum Keep { kBest, kWeighted, kAll };  // the best score, that and what its token weighs, or that and which it is, and every score

struct ResidualTask {
  Shard shard;
  Decoder decoder;
  const PackedQuery* queries;
  int64_t num_queries;
  const int64_t* documents;     // [count] or null: document i is i
  int64_t count;
  float* scores;                // [queries, count]
};

// TRIAL (docs/algorithms.md#54-exact-evaluation-in-fewer-steps): words are of 16 bits, rows of `width` of them filled with zeros.
struct RelationTask {
  Shard shard;
  Decoder decoder;
  PackedQuery query;            // scratch is the worker's
  int64_t num_tokens;           // n
  PackedQuery layer;            // the relation encoder's first layer as a query of 2 width tokens: what a token adds to the hidden layer of a
                                // pair as the first, then as the second; in the order that to_words has of registers of products
  int product_bits;             // products with it lose so many bits to be words; they begin with half of the last of these
  float residual_unit;          // times scales[1], what such a word is worth in twice the unit of halves, times 2^15
  const int16_t* centroids;     // [C, 2 width] what centroids add
  const int16_t* bias;          // [2 width]
  int64_t dim;
  int64_t width;                // D rounded up to 64
  float epsilon;                // the norm's, in these units squared
  int norm_bits;                // what is divided by its root mean square is words of 2^norm_bits
  int shift_bits;               // then times scale plus shift it is words of 2^shift_bits
  const int16_t* scale;         // [width] times 2^(15 + shift_bits - norm_bits)
  const int16_t* shift;         // [width]
  const int16_t* lines;         // [2, kMishLines] Mish's: slopes times 2^14, starts times 2^(shift_bits - 1)
  int16_t lines_a_unit;         // of a word that Mish is of, times 2^16
  const int16_t* products;      // [n, width] what the hidden layer of a pair is multiplied with
  const float* factors;         // [n] what that is worth
  const float* constants;       // [n] added to that
  const float* upper;           // [n] no relation is above
  bool by_cosine;               // a relation starts from the token with the best cosine, not from the winner
  const int64_t* documents;
  int64_t count;
  float* scores;                // [count]
};

enum Which : uint8_t { kBefore = 1, kAfter = 2 };  // of a token's halves

struct AskedToken {
  int64_t token;                // of the shard
  int64_t place;                // of its halves
};

struct Alignment {              // of a document's m tokens with a query's
  int64_t place;                // of the document among those that are scored
  int64_t first;                // token of the shard
  int64_t count;                // m
  int64_t at;                   // the place of the first token's halves
  float* all;                   // [m, L] cosines
  int32_t* nearest;             // [L] the token of the best cosine
  float* values;                // [L] the score with the nearest
  float* least;                 // [L] the cosine of what could win
  int32_t* candidates;          // [L, m]
  int32_t* num_candidates;      // [L]
  int32_t* relations;           // [L, kFew] of candidates, where there are no more
};

// Of a worker, for documents that are aligned together and have up to so many tokens (capacity).
struct RelationScratch {
  uint8_t* rows;                // [2 kRows, stride of the decoder]
  float* all;                   // [capacity, L]
  int32_t* candidates;          // [capacity, L]
  int32_t* found;               // [capacity]
  uint32_t* masks;              // [capacity] query tokens, a bit each
  int32_t* nearest;             // [kDocumentsTogether, L], and so the next three
  float* values;
  float* least;
  int32_t* num_candidates;
  int32_t* relations;           // [kDocumentsTogether, L, kFew]
  int16_t* halves;              // [capacity, 2 width]
  uint8_t* made;                // [capacity] which
  AskedToken* asked;            // [capacity] whose halves are to be made
  int64_t num_asked;
  Alignment* documents;         // [kDocumentsTogether]
  int64_t num_documents;
};

struct CentroidTask {
  Shard shard;                  // residuals and scales are not read
  const void* table;            // [C, L] Score or uint8; of bytes L is a multiple of 16
  const float* weights;         // [L] a score's factor: importance, times what a byte is worth
  float base;                   // added to every document that has tokens
  int64_t lanes;
  const uint8_t* keep;          // [C] or null: centroids that count
  const int64_t* documents;
  int64_t count;
  float* scores;                // [count]
};

struct DocumentState {          // WARP's running score of a document
  double total;
  float best;
  int32_t stamp;                // the query token that touched it last, plus one
};

struct PostingTask {
  Shard shard;
  Decoder decoder;
  const uint32_t* postings;     // [T]
  const int64_t* posting_offsets;
  const uint32_t* documents;    // [T] of each posting
  const float* ratios;          // [T] of each posting its token's scales[1] / scales[0]: WARP's token is the centroid plus the buckets in the
                                // residual's own scale, and is not brought to length one
  const int8_t* query;          // [stride] one query token, in the order of decoded rows
  int32_t start;
  float slope;
  const int64_t* cells;         // [count]
  const float* cell_scores;
  int64_t count;
  double weight;
  float imputed;
  bool floor;
  int32_t stamp;
  DocumentState* states;        // [N]
  float* worths;                // [N] with token weights: the best times what its token weighs
};

struct WordsTask {              // products of 16-bit rows with packed 16-bit columns
  const int16_t* rows;          // [num_rows, stride]
  int64_t stride;               // a multiple of 2, at least D
  int64_t num_rows;
  const int16_t* columns;       // packed, `lanes` of them
  int64_t lanes;
  int64_t pairs;
  const float* scales;          // [lanes] what a product is worth
  const int32_t* biases;        // [num_rows] or null: added to the products that are compared
  int32_t* nearest;             // [lanes] the row with the largest product, the first of equals
  int32_t* nearness;            // [lanes] that product, as an integer
};

struct RowsTask {               // bare products of 8-bit rows with a query: the speed limit to compare with
  const uint8_t* rows;          // [num_rows, stride], each below 128
  int64_t stride;
  int64_t quads;
  const PackedQuery* query;     // best: the largest product of every query token
};

struct TableTask {              // a table of centroid scores in bytes
  const Score* table;           // [C, L]
  int64_t num_centroids;
  int64_t lanes;
  int64_t byte_lanes;           // L rounded up to 16
  float* lows;                  // [L] the score of byte 0
  float* steps;                 // [L] what a byte is worth
  uint8_t* bytes;               // [C, byte lanes]
};

struct ReachTask {              // which of 8 query tokens a centroid scores enough for
  const Score* table;           // from the first of the 8, a row every `lanes` scores
  int64_t num_centroids;
  int64_t lanes;
  const float* thresholds;      // [8]
  uint8_t* masks;               // [C] a bit each
};

struct CompressTask {
  const float* vectors;         // [count, D]
  const float* centroids;       // [C, D]
  const int64_t* codes;         // [count]
  int64_t dim;
  const float* cutoffs;         // [2^nbits - 1]
  const float* weights;         // [2^nbits]
  int nbits;
  bool token_scale;             // buckets are of residuals over their root mean square
  int64_t count;
  uint8_t* packed;              // [count, P]
  float* scales;                // [count, 2]
  float* norms;                 // [count]
  float* residual;              // [D] scratch
  float* decoded;               // [D] scratch
  int32_t* buckets;             // [D] scratch
};

struct Isa {
  const char* name;
  void (*residual_maxsim)(const ResidualTask&, int64_t begin, int64_t end, uint8_t* rows);
  void (*relation_maxsim)(const RelationTask&, int64_t begin, int64_t end, RelationScratch& scratch);
  void (*centroid_maxsim)(const CentroidTask&, int64_t begin, int64_t end, float* best);
  void (*byte_maxsim)(const CentroidTask&, int64_t begin, int64_t end, float* best);
  void (*score_postings)(const PostingTask&, uint8_t* row);
  void (*word_products)(const WordsTask&, float* products, int64_t begin, int64_t end);    // [num_rows, lanes]
  void (*word_scores)(const WordsTask&, Score* products, int64_t begin, int64_t end);
  void (*word_nearest)(const WordsTask&);
  void (*row_maxima)(const RowsTask&, int64_t begin, int64_t end);
  void (*byte_table)(const TableTask&);
  void (*reached)(const ReachTask&);
  void (*compress)(const CompressTask&, int64_t begin, int64_t end);
  void (*rotate)(const float* rows, int64_t count, int64_t dim, const float* rotation, float* turned);
  void (*to_floats)(const uint16_t* halves, int64_t count, float* floats);
  void (*to_words)(const float* rows, int64_t count, int64_t dim, int64_t stride, int16_t* words, float* lengths);
};

// Each returns null where the compiler could not build it.
const Isa* portable_isa();
const Isa* avx2_isa();
const Isa* avx512_isa();
const Isa* amx_isa();

}  // namespace ray_lir
