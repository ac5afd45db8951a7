// The kernels of one instruction set: their arguments, and the table of functions that every set fills.
//
// Shapes: T tokens, N documents, C centroids, D dimensions, P packed bytes a token, n query tokens, L lanes = n rounded up
// to a multiple of 8. The caller checks shapes and owns all memory; kernels neither allocate nor throw.
//
// A vector register holds the same 4 dimensions (or 2, with words) of several query tokens. The same dimensions of a document token are
// broadcast to all lanes, so a product needs no horizontal sum. Packed queries have one of two forms:
//   bytes: [L / 16 rounded up][stride / 4][16][4] int8. stride is D rounded up to a multiple of 64, filled with zeros. Dimensions are in
//   the order of decoded rows. With 4 bits, each complete block of 64 dimensions has its even dimensions first, then its odd ones.
//   words: [L / 16 rounded up][pairs][16][2] int16, pairs = D / 2 rounded up
// Centroid scores are float16: reads of a query's score table are random, and a smaller table stays in faster caches.
#pragma once
#include <cstdint>

namespace ray_lir {

typedef uint16_t Score;              // float16

constexpr int kGroup = 16;           // query tokens packed together
constexpr int kStep = 8;             // the number of lanes is a multiple of this
constexpr int kRows = 32;            // largest number of document tokens decoded together
constexpr int kMoreRows = 8;         // further rows of memory, multiplied without using the products
constexpr int kLanesTogether = 32;   // query tokens that a matrix unit multiplies with a block at a time
// Largest number of tokens of the documents that are aligned together, unless a single document has more.
constexpr int64_t kTogether = 1280;
constexpr int64_t kDocumentsTogether = 32;
constexpr int64_t kNearestTokens = 256;    // document tokens that are selected before they are scored; their residuals are prefetched
constexpr int64_t kFew = 8;                // query tokens with at most this many candidates are computed together
constexpr int kMishLines = 32;
constexpr int kMishLeast = -21;      // start of the first line, in units of a line's length
constexpr float kLargestScore = 65504;  // largest finite float16
constexpr int kTrellisMemory = 4;    // largest number of bits that a trellis remembers
constexpr int kRowsTogether = 16;    // rows of a trellis that are transposed together, a multiple of every kLanes
constexpr int kWidest = 8;           // largest number of dimensions of a byte of a trellis
constexpr int lut_stride(int width) { return width > 4 ? 8 : 4; }  // bytes of a row of its decoding table
constexpr int kWordBits = 14;        // words are values times 2^14, so that products of unit vectors fit 32 bits
constexpr float kWordScale = 1.0f / (1 << (2 * kWordBits));

// Decodes packed residuals to unsigned bytes: lut[byte] holds the dimensions of one packed byte. A decoded byte is 64 plus a
// signed level between -63 and 63, so the sum of two products with signed bytes fits 16 bits.
struct Decoder {
  int nbits;                    // 0 with a trellis
  int memory;                   // bits of the byte before that choose the values of a byte
  int width;                    // dimensions of the first `wide` bytes of a trellis; the other bytes have one dimension fewer
  int64_t wide;
  int64_t quads;                // D / 4 rounded up, the number of 4-byte items of a product
  int64_t packed_bytes;         // P
  int64_t stride;               // bytes of a decoded row: D rounded up to a multiple of 64
  const uint8_t* lut;           // [256][8 / nbits]; [2^(8 + memory)][4 or 8] with a trellis
  const uint8_t* levels;        // [2^nbits]
};

struct Shard {
  const void* codes;            // [T] uint16 or uint32
  bool wide_codes;
  const uint8_t* residuals;     // [T, P]
  const uint16_t* scales;       // [T, 2] float16: a decoded token is scales[0] centroid + scales[1] buckets; null with pairs
  const uint8_t* numbers;       // [T] the pair of scales of each token; null without pairs
  const float* pairs;           // [256, 2]
  const uint16_t* weights;      // [T] float16 or null: token weights minus one
  const int64_t* doc_offsets;   // [N + 1]
};

struct PackedQuery {
  const int8_t* bytes;
  const int32_t* starts;        // [L rounded up to 16] initial values of the sums: -64 times the sum of the query token's bytes
  const float* slopes;          // [L] the value of one unit of an integer product
  const Score* table;           // [C, L] centroid scores
  const float* weights;         // [L]
  float* best;                  // [L] scratch
  float* factors;               // [L] scratch: weight of the best token, or its number
  float* all;                   // [tokens of a document, L] all scores, for kAll only
  int64_t lanes;
  bool four_fit;                // the sums of 4 products that AVX2 adds in 16 bits fit there (queries.h)
};

struct Block {                  // consecutive tokens of a document, decoded
  int64_t place;                // position of the document among the documents to score
  int64_t first, last;          // tokens of the document, last excluded
  int64_t token;                // first token of the block
  int64_t count;                // tokens of the block, at most kRows
  uint8_t* rows;
  float* scales;                // [count, 2]
  float* weights;               // [count]
  int64_t next;                 // first token of the next block
  int64_t next_count;
};

typedef int32_t Products[kLanesTogether / kGroup][kRows][kGroup];  // products of a block's tokens with query tokens

enum Keep { kBest, kWeighted, kAll };  // keep the best score; or also its token's weight; or also its token's number and all scores

struct ResidualTask {
  Shard shard;
  Decoder decoder;
  const PackedQuery* queries;
  int64_t num_queries;
  int64_t block_rows;           // tokens decoded together, at most kRows; a matrix unit multiplies kRows
  const int64_t* documents;     // [count] or null: document i is i
  int64_t count;
  float* scores;                // [queries, count]
};

// TRIAL (docs/algorithms.md#54-exact-evaluation-in-fewer-steps). Words have 16 bits. Rows have `width` words and are filled with zeros. The
// halves of a token are its contributions to the hidden layer of a pair: as the first token, and as the second token.
struct RelationTask {
  Shard shard;
  Decoder decoder;
  PackedQuery query;            // its scratch arrays belong to the thread
  PackedQuery selectors;        // the vectors whose products select candidates, one for each query token; without them, cosines do
  bool has_selectors;
  int64_t num_tokens;           // n
  PackedQuery layer;            // the relation encoder's first layer, as a query of 2 width tokens: the rows for the first token of a pair, then
                                // the rows for the second; in the order in which to_words packs registers of products
  int product_bits;             // number of low bits that a product with the layer loses to become a word; sums start with half of the last lost bit
  float residual_unit;          // residual_unit * scales[1] is the value of such a word in twice the unit of halves, times 2^15
  const int16_t* centroids;     // [C, 2 width] the contribution of each centroid to the halves
  const int16_t* bias;          // [2 width]
  int64_t dim;
  int64_t width;                // D rounded up to 64
  float epsilon;                // epsilon of the norm, in squared units of halves
  int norm_bits;                // after the division by the root mean square, values are words times 2^norm_bits
  int shift_bits;               // after scale and shift, values are words times 2^shift_bits
  const int16_t* scale;         // [width] scale times 2^(15 + shift_bits - norm_bits)
  const int16_t* shift;         // [width]
  const int16_t* lines;         // [2, kMishLines] Mish as lines: slopes times 2^14, starts times 2^(shift_bits - 1)
  int16_t lines_a_unit;         // number of lines in one unit of an argument of Mish (a word), times 2^16
  const int16_t* products;      // [n, width] the vector with which the hidden layer of a pair is multiplied
  const float* factors;         // [n] the value of one unit of that product
  const float* constants;       // [n] constant to add
  const float* upper;           // [n] upper bound of the relations
  bool by_cosine;               // the first token of a relation is the token of the best cosine, not the match
  bool from_first_token;        // the relation of the second query token starts from the document's first token
  int64_t nearest_tokens;       // number of document tokens that each query token is compared with: the best by cosine or selector; 0: all
  const int64_t* documents;
  int64_t count;
  float* scores;                // [count]
};

enum Which : uint8_t { kBefore = 1, kAfter = 2 };  // the half of a token as the first (before) or the second (after) of a pair

struct AskedToken {             // a token that waits for its halves
  int64_t token;                // its number in the shard
  int64_t place;                // the position of its halves in RelationScratch::halves
};

struct Alignment {              // the alignment of a query with the m tokens of a document
  int64_t place;                // position of the document among the documents to score
  int64_t first;                // number of its first token in the shard
  int64_t count;                // m
  int64_t at;                   // position of the first token's halves
  float* all;                   // [m, L] cosines
  float* ranking;               // [m, L] products with the selectors; without selectors, cosines
  int32_t* nearest;             // [L] the token of the best cosine or selector, the expected match
  int32_t* origins;             // [L] the token from which the relation of the next query token is expected to start
  float* values;                // [L] the score of a match with the nearest token
  float* least;                 // [L] the lowest cosine with which another token could still be the match
  int32_t* candidates;          // [L, m]
  int32_t* num_candidates;      // [L] candidates that could still be the match; they are first in the list
  int32_t* num_listed;          // [L] candidates in the list
  int32_t* relations;           // [L, kFew] relations of the candidates of query tokens with at most kFew candidates
};

// The scratch memory of one thread, for documents that are aligned together and have up to `capacity` tokens in total.
struct RelationScratch {
  uint8_t* rows;                // [2 kRows, stride of the decoder]
  float* all;                   // [capacity, L]
  float* ranking;               // [capacity, L]; the same memory as `all` without selectors
  int32_t* candidates;          // [capacity, L]
  int32_t* found;               // [capacity]
  uint32_t* masks;              // [capacity] one bit for each query token
  int32_t* nearest;             // [kDocumentsTogether, L], like the next five arrays
  int32_t* origins;
  float* values;
  float* least;
  int32_t* num_candidates;
  int32_t* num_listed;
  int32_t* relations;           // [kDocumentsTogether, L, kFew]
  float* top;                   // [nearest_tokens, L] the best scores of groups of tokens, best first
  int16_t* halves;              // [capacity, 2 width]
  uint8_t* made;                // [capacity] which halves are computed
  AskedToken* asked;            // [capacity] tokens that wait for their halves
  int64_t num_asked;
  Alignment* documents;         // [kDocumentsTogether]
  int64_t num_documents;
};

struct CentroidTask {
  Shard shard;                  // residuals and scales are not read
  const void* table;            // [C, L] Score or uint8; with uint8, L is a multiple of 16
  const float* weights;         // [L] factor of a score: the query token's weight, times the value of one unit of a byte
  float base;                   // added to the score of every document that has tokens
  int64_t lanes;
  const uint8_t* keep;          // [C] or null: nonzero for centroids that are not pruned
  const int64_t* documents;
  int64_t count;
  float* scores;                // [count]
};

// MaxSim with only the nearest document tokens decoded: those with a query token's best centroid in the document (Kernels.nearest_maxsim).
struct NearestTask {
  Shard shard;
  Decoder decoder;
  PackedQuery query;
  const int8_t* rows;           // [L, stride] the query's bytes, one query token after another
  const uint32_t* active;       // [L / 32 rounded up] one bit for each query token that scores
  const void* distinct;         // the distinct codes of each document, of the same type as the shard's codes
  const int64_t* distinct_offsets;
  const uint8_t* bytes;         // [C, byte lanes] centroid scores: byte b stands for lows + b steps
  int64_t byte_lanes;           // L rounded up to 16
  const float* lows;            // [L]
  const float* steps;           // [L]
  int64_t block_rows;           // tokens decoded together, at most kRows
  const int64_t* documents;     // [count]
  float* scores;                // [count]
};

struct DocumentState {          // WARP's running score of a document
  double total;
  float best;
  int32_t stamp;                // number of the query token that last changed it, plus one
};

struct PostingTask {
  Shard shard;
  Decoder decoder;
  const uint32_t* postings;     // [T]
  const int64_t* posting_offsets;
  const uint32_t* documents;    // [T] the document of each posting
  const float* ratios;          // [T] scales[1] / scales[0] of each posting's token: WARP adds the buckets, in the scale of the residual, to the
                                // centroid and does not normalise the result. Null with pairs of scales: WARP uses both scales then
  const uint8_t* numbers;       // [T] the pair of scales of each posting's token
  const float* pairs;           // [256, 2]
  const int8_t* query;          // [stride] one query token, in the order of decoded rows
  int32_t start;
  float slope;
  const int64_t* clusters;      // [count] probed clusters
  const float* cluster_scores;
  int64_t count;
  double weight;
  float imputed;
  bool floor;
  int32_t stamp;
  DocumentState* states;        // [N]
  float* worths;                // [N] with token weights: the best score times its token's weight
};

struct WordsTask {              // products of 16-bit rows with packed 16-bit columns
  const int16_t* rows;          // [num_rows, stride]
  int64_t stride;               // a multiple of 2, at least D
  int64_t num_rows;
  const int16_t* columns;       // packed, `lanes` of them
  int64_t lanes;
  int64_t pairs;
  const float* scales;          // [lanes] the value of one unit of a product
  const int32_t* biases;        // [num_rows] or null: added to the products that are compared
  int32_t* nearest;             // [lanes] the row with the largest product; ties go to the first
  int32_t* nearness;            // [lanes] that product, as an integer
};

struct RowsTask {               // products of 8-bit rows with a query and nothing else, as an upper bound of the speed
  const uint8_t* rows;          // [num_rows, stride], values below 128
  int64_t stride;
  int64_t quads;
  const PackedQuery* query;     // its `best` gets the largest product of every query token
};

struct TableTask {              // converts a table of centroid scores to bytes
  const Score* table;           // [C, L]
  int64_t num_centroids;
  int64_t lanes;
  int64_t byte_lanes;           // L rounded up to 16
  float* lows;                  // [L] the score of byte 0
  float* steps;                 // [L] the value of one unit of a byte
  uint8_t* bytes;               // [C, byte lanes]
};

struct ReachTask {              // finds the centroids that reach the threshold of at least one of 8 query tokens
  const Score* table;           // starts at the first of the 8 query tokens; a row has `lanes` scores
  int64_t num_centroids;
  int64_t lanes;
  const float* thresholds;      // [8]
  uint8_t* masks;               // [C] one bit for each query token
};

struct CompressTask {
  const float* vectors;         // [count, D]
  const float* centroids;       // [C, D]
  const int64_t* codes;         // [count]
  int64_t dim;
  const float* cutoffs;         // [2^nbits - 1]
  const float* weights;         // [2^nbits]; [2^(8 + memory), width] with a trellis
  const float* columns;         // [2^(8 + memory) / 16][width][16] the trellis, 16 rows transposed together; null without one
  const float* minus_halves;    // [2, 2^(8 + memory)] minus half of the square of each row of the trellis: with all its values, and without the last
  Decoder decoder;              // its lut is not read
  bool from_nearest;            // residuals are from the nearest multiple of the centroid, instead of from the centroid
  bool token_scale;             // residuals are divided by their root mean square before bucketing
  int64_t count;
  uint8_t* packed;              // [count, P]
  float* scales;                // [count, 2]
  float* norms;                 // [count]
  float* residual;              // [D] scratch
  float* decoded;               // [D] scratch
  int32_t* buckets;             // [D] scratch
  uint8_t* paths;               // [P, 256 + 2^memory] scratch: for each byte the best state before it, and for each state its best byte
};

// The encoder's products in 8-bit integers (docs/algorithms.md#17-products-of-bytes). Widths are multiples of 16.
constexpr int64_t kTokensTogether = 32;  // tokens that pass through a layer together, so that their activations stay in the caches
constexpr float kLargestByte = 181;      // of an activation
constexpr float kLargestWeight = 127;
constexpr float kLargestFour = 181;      // sum of weights with the same sign among 4; their products' sum fits 16 bits
constexpr int64_t kMostMixed = 32;       // largest power of two that divides the number of inputs that are mixed
constexpr int64_t kQueriesTogether = 8;  // largest number of query tokens that attention processes together
constexpr float kLargestWord = 32767;    // of a value in attention
constexpr float kWhole = 32000;          // the sum of a token's attention probabilities as words; rounding may add half a unit a key
constexpr float kNoLogit = -1e30f;        // of a key that is not attended to
constexpr float kLeastPower = -125;      // powers of 2 below 2^-125 count as 2^-125
constexpr float kLargestLogit = 1 << 20;  // greater ones are reduced by the largest one before their powers are computed
constexpr float kRound = 12582912;       // 1.5 2^23: a sum with it has the other number, rounded, in its lowest bits

struct QuantizedLinear {
  const int8_t* bytes;          // [outputs / 16][inputs / 4][16][4]
  const float* scales;          // [outputs] the value of one unit of a byte
  const float* totals;          // [outputs] the sum of a column of weights, as the bytes have it
  const int32_t* offsets;       // [outputs] 128 times the sum of a column's bytes
  const float* bias;            // [outputs]
  int64_t inputs, outputs;
};

struct QuantizedRows {          // value i of row r, after mixing, is lows[r] + bytes[r, i] steps[r]
  uint8_t* bytes;               // less 128, as signed bytes, with kernels that multiply signed bytes only
  float* lows;                  // [kTokensTogether]
  float* steps;
  float* mixed;                 // [inputs] scratch
};

// Inputs whose sums and differences replace them: `power` (a power of two) or 3 `power` inputs, which are `step` apart.
struct Mixing {
  int64_t power, step;
  bool three;
};

constexpr Mixing mixing_of(int64_t inputs) {
  int64_t power = 1, step = inputs;
  while (power < kMostMixed && step % 32 == 0) power *= 2, step /= 2;
  const bool three = step % 48 == 0;
  return {power, three ? step / 3 : step, three};
}

struct LayerNorm {
  const float* scale;
  const float* shift;
  float epsilon;
};

struct EncoderLayer {           // a layer of a transformer
  QuantizedLinear project;      // [width] to query, key and value, each [heads, padded]
  QuantizedLinear output, widen, narrow;
  LayerNorm norm, last_norm;
};

struct EncoderText {
  int64_t first, length;        // its tokens
  int64_t attended;             // the first tokens are attended to
  int64_t first_key;            // of its keys and values in EncoderScratch
};

struct EncoderTask {
  const EncoderLayer* layers;
  int64_t num_layers;
  int64_t heads, dim, padded;   // dimensions of a head, and rounded up to a multiple of 32
  float word_limit;             // largest word of a query or key, so that their product fits 32 bits
  float logit_scale;            // log2(e) / sqrt(dim) / word_limit
  const float* biases;          // [heads, bias_stride] or null: added to logits, times log2(e); item `reach` is that of equal positions
  int64_t bias_stride, reach;
  const EncoderText* texts;     // in order, without gaps
  int64_t num_texts;
  int64_t num_tokens;           // T
  float* hidden;                // [T, width] input, and result
};

struct EncoderScratch {         // of one thread
  QuantizedRows rows;           // kTokensTogether rows of the widest input
  float* narrow;                // [kTokensTogether, width]
  float* wide;                  // [kTokensTogether, outputs of the widest product]
  int32_t* queries;             // [T][heads][padded / 2] pairs of words
  int32_t* keys;                // for each text [heads][keys / 16][padded / 2][16]
  int32_t* values;              // for each text [heads][padded / 16][keys / 2][16]
  float* query_scales;          // [T]
  float* key_scales;            // [keys of all texts]
  float* value_scales;
  float* logits;                // [8, keys of the longest text]
  int32_t* shares;              // [8, keys / 2] attention probabilities as pairs of words
};

// Memory for the keys of a text: a multiple of 32.
constexpr int64_t padded_keys_of(int64_t attended) { return (attended + 31) / 32 * 32; }

struct Isa {
  const char* name;
  void (*residual_maxsim)(const ResidualTask&, int64_t begin, int64_t end, uint8_t* rows);
  void (*relation_maxsim)(const RelationTask&, int64_t begin, int64_t end, RelationScratch& scratch);
  void (*centroid_maxsim)(const CentroidTask&, int64_t begin, int64_t end, float* best);
  void (*byte_maxsim)(const CentroidTask&, int64_t begin, int64_t end, float* best);
  void (*nearest_maxsim)(const NearestTask&, int64_t begin, int64_t end, uint8_t* rows);
  void (*score_postings)(const PostingTask&, uint8_t* row);
  void (*word_products)(const WordsTask&, float* products, int64_t begin, int64_t end);    // [num_rows, lanes]
  void (*word_scores)(const WordsTask&, Score* products, int64_t begin, int64_t end);
  void (*word_nearest)(const WordsTask&);
  void (*row_maxima)(const RowsTask&, int64_t begin, int64_t end);
  void (*byte_table)(const TableTask&);
  void (*reached)(const ReachTask&);
  void (*compress)(const CompressTask&, int64_t begin, int64_t end);
  void (*rotate)(const float* rows, int64_t count, int64_t dim, const float* rotation, float* rotated);
  void (*to_floats)(const uint16_t* halves, int64_t count, float* floats);
  void (*to_words)(const float* rows, int64_t count, int64_t dim, int64_t stride, int16_t* words, float* lengths);
  void (*mix)(const float* row, int64_t inputs, float* mixed);
  void (*quantized_linear)(const float* rows, int64_t count, const QuantizedLinear&, const QuantizedRows& scratch, float* products);
  void (*encode_layers)(const EncoderTask&, const EncoderScratch&);
};

// Each returns null if the compiler could not build the instruction set.
const Isa* portable_isa();
const Isa* avx2_isa();
const Isa* avx512_isa();
const Isa* amx_isa();
const Isa* neon_isa();

}  // namespace ray_lir
