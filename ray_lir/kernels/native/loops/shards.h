// A token's code in a shard, and a document's number; a part of loops.h.

inline uint32_t code_of(const Shard& shard, int64_t token) {
  return shard.wide_codes ? static_cast<const uint32_t*>(shard.codes)[token] : static_cast<const uint16_t*>(shard.codes)[token];
}

inline int64_t number_of(const int64_t* documents, int64_t i) { return documents ? documents[i] : i; }
