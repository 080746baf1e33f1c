// Texts to embeddings: where the prompt stands, and which rows are pooled.
#pragma once
#include "model/pass.h"

namespace quest {

enum class Placement { none, prefix, suffix };
// Of a text's own rows: its tokens, or with a suffix the copies of the prompt.
enum class Pooling { last, mean };

struct Text {
  const int32_t* tokens = nullptr;
  int32_t count = 0;  // tokens, at least 1
  KeyValues kv;       // suffix: its keys and values when they are at hand (text cache)
};

struct Encoder {
  const Model& model;
  const Context& context;
  Placement placement = Placement::none;
  Pooling pooling = Pooling::last;
  View prompt;          // [K,d] acc, as the ops see it; absent without a prompt
  int64_t rows = 1024;  // of one forward-only pass, about
};

// Prefix placement: the prompt's rows, run once for all texts. Otherwise nothing happens (rows == 0).
// With a spacing the pass can be run backward.
Pass prefix_pass(const Encoder&, int64_t spacing);

// Suffix placement: keys and values of texts, without prompt. Fills store (layers * rows * key_value_bytes
// for all their tokens) and sets texts[i].kv. With last or mean ([n,d] acc) also the embeddings without any
// prompt.
void text_pass(const Encoder&, Text* texts, int64_t n, KeyValues store, View last, View mean);

// The pass whose pooled rows are the embeddings of the texts; forward() has run when it returns, e [n,d] acc
// is filled. prefix: own keys and values of prefix_pass. Suffix: every text has its kv.
Pass embed_pass(const Encoder&, const Text* texts, int64_t n, KeyValues prefix, int64_t spacing, View e);

// Embeddings e [n,d] acc of any number of texts, pass by pass; nothing stays in the arena.
// Suffix texts without kv are run through text_pass first.
void embed_texts(const Encoder&, const Text* texts, int64_t n, View e);

// Texts of one pass: as many of texts[first, n) as have together at most `rows` tokens, at least one.
int64_t texts_per_pass(const Text* texts, int64_t first, int64_t n, int64_t rows);

// Copies texts; those without kv get them by text_pass, in the arena (suffix placement; otherwise a plain
// copy).
Text* with_keys_values(const Encoder&, const Text* texts, int64_t n);

}  // namespace quest
