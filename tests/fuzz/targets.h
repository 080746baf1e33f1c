// Every parser of bytes that strangers may have written, as a function of those bytes. Each accepts them or throws
// Error(input); anything else (a crash, another exception, a sanitizer's report) is a defect. A target of several files
// takes them from one input, parted by lines of "=====".
#pragma once
#include <stdlib.h>

#include <filesystem>
#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "index/hnsw.h"
#include "index/npy.h"
#include "kernels/base/hash.h"
#include "model/config.h"
#include "model/llama.h"
#include "model/tokenizer.h"
#include "sampling/dataset.h"
#include "sampling/import.h"
#include "tools/run.h"
#include "train/prompt_file.h"
#include "train/trainer.h"

namespace quest::fuzz {

namespace fs = std::filesystem;

inline const std::string separator = "\n=====\n";

inline std::vector<std::string> parts_of(std::string_view bytes) {
  std::vector<std::string> parts;
  for (size_t at = 0; at <= bytes.size();) {
    const size_t end = std::min(bytes.find(separator, at), bytes.size());
    parts.emplace_back(bytes.substr(at, end - at));
    at = end + separator.size();
  }
  return parts;
}

// A folder in memory, emptied for every input.
inline const std::string& folder() {
  static const struct Folder {
    std::string path = fs::exists("/dev/shm") ? "/dev/shm/quest-fuzz-XXXXXX" : "/tmp/quest-fuzz-XXXXXX";
    Folder() {
      if (!mkdtemp(path.data())) fail(Exit::machine, "mkdtemp failed");
    }
    ~Folder() {
      std::error_code ignored;
      fs::remove_all(path, ignored);
    }
  } made;
  return made.path;
}

// Plain writes: nothing needs to be synced.
inline std::string put(const std::string& name, std::string_view bytes) {
  const std::string path = folder() + "/" + name;
  std::error_code ignored;
  fs::create_directories(fs::path(path).parent_path(), ignored);
  FILE* file = fopen(path.c_str(), "wb");
  if (!file || fwrite(bytes.data(), 1, bytes.size(), file) != bytes.size() || fclose(file) != 0) abort();
  return path;
}
inline void put_all(const std::vector<std::string>& names, const std::vector<std::string>& parts) {
  for (size_t i = 0; i < names.size(); ++i) put(names[i], i < parts.size() ? parts[i] : "");
}

inline void encode_something(const Tokenizer& t) {
  std::vector<int32_t> ids;
  for (const char* text : {"It's 1234 quick  foxes\n\n <s>", "a\xff\u2581\u00e9\u65e5", ""}) t.encode(text, ids);
  for (const int32_t id : ids)
    if (id < 0 || id >= t.size()) abort();
}

inline void import_and_open(const std::string& source) {
  std::exception_ptr refusal;
  for (const bool skip : {false, true}) {
    const std::string out = folder() + "/out";
    try {
      import_dataset(source, out, {skip, "", false});
    } catch (const Error& e) {
      if (e.code != Exit::input) throw;
      if (exists(out) || exists(out + ".tmp")) abort();  // nothing half-written stays
      refusal = std::current_exception();
      continue;
    }
    const Dataset d = open_dataset(out);
    for (const Split* side : {&d.train, &d.test})
      for (int64_t i = 0; i < side->texts.size(); ++i) {
        for (const int32_t l : side->labels.row(i))
          if (l < 0 || l >= d.labels.size()) abort();
        for (const int32_t l : side->filtered(i))
          if (l < 0 || l >= d.labels.size()) abort();
      }
    fs::remove_all(out);
  }
  if (refusal) std::rethrow_exception(refusal);
}

using Target = std::function<void(std::string_view)>;

inline const std::map<std::string, Target>& targets() {
  static const std::map<std::string, Target> all = {
      {"gguf",
       [](std::string_view b) {
         const std::string path = put("model.gguf", b);
         const auto m = load_model(path);
         for (const View* w : {&m->embedding, &m->layer[0].q, &m->layer[0].down}) decoded(*w);
         encode_something(Tokenizer(read_vocabulary(path)));
         fs::create_directories(folder() + "/copy");
         copy_tokenizer(path, folder() + "/copy");
         encode_something(Tokenizer(read_vocabulary(folder() + "/copy")));
       }},
      {"safetensors",
       [](std::string_view b) {
         const TensorFile f = read_tensors(put("x.safetensors", b));
         for (const auto& [name, t] : f.tensors)
           if (t.shape.size() == 2 && t.type == "F32") f.matrix(name, t.shape[0], t.shape[1]);
         for (const auto& [name, text] : f.metadata) f.text(name);
       }},
      {"folder",  // config.json, model.safetensors, the index of shards
       [](std::string_view b) {
         const auto parts = parts_of(b);
         put_all({"model/config.json", "model/model.safetensors"}, parts);
         if (parts.size() > 2) put("model/model.safetensors.index.json", parts[2]);
         const auto m = load_model(folder() + "/model");
         for (const View* w : {&m->embedding, &m->layer[0].q, &m->layer[0].down}) decoded(*w);
       }},
      {"tokenizer_json",
       [](std::string_view b) {
         put("t/tokenizer.json", b);
         encode_something(Tokenizer(read_vocabulary(folder() + "/t")));
       }},
      {"sentencepiece",
       [](std::string_view b) {
         put("t/tokenizer.model", b);
         encode_something(Tokenizer(read_vocabulary(folder() + "/t")));
       }},
      {"raw",
       [](std::string_view b) {
         put_all({"in/lbl.json", "in/trn.json", "in/tst.json", "in/filter_labels_test.txt"}, parts_of(b));
         import_and_open(folder() + "/in");
       }},
      {"sparse",
       [](std::string_view b) {
         put_all({"in/Y.txt", "in/trn_X.txt", "in/trn_X_Y.txt", "in/tst_X.txt", "in/tst_X_Y.txt",
                  "in/tst_filter_labels.txt"},
                 parts_of(b));
         import_and_open(folder() + "/in");
       }},
      {"tsv", [](std::string_view b) { import_and_open(put("in.tsv", b)); }},
      {"json_lines", [](std::string_view b) { import_and_open(put("in.jsonl", b)); }},
      {"gzip", [](std::string_view b) { import_and_open(put("in.tsv.gz", b)); }},
      {"dataset",  // the folder that import makes
       [](std::string_view b) {
         put_all({"d/meta.json", "d/labels.text", "d/labels.ends", "d/train.text", "d/train.ends", "d/train.offsets",
                  "d/train.labels", "d/train.own", "d/test.text", "d/test.ends", "d/test.offsets", "d/test.labels",
                  "d/test.own", "d/test.filter.offsets", "d/test.filter.labels"},
                 parts_of(b));
         const Dataset d = open_dataset(folder() + "/d");
         for (int64_t i = 0; i < d.labels.size(); ++i)
           if (d.labels.title(i).size() + d.labels.content(i).size() > b.size()) abort();
       }},
      {"hnsw",  // the graph; its hash in the sidecar is made right
       [](std::string_view b) {
         auto parts = parts_of(b);
         parts.resize(2);
         constexpr size_t sha_at = 72;
         const std::string sha = sha256_hex(parts[0]);
         if (parts[1].size() >= sha_at + sha.size()) parts[1].replace(sha_at, sha.size(), sha);
         put_all({"i/index", "i/index.meta"}, parts);
         static Threads threads(1);
         const Hnsw index(folder() + "/i/index", 12, 3);
         const float q[] = {1, 0, 0};
         const Ranked r = index.search({q, 1, 3}, 5, threads);
         for (const int32_t id : r.ids)
           if (id < -1 || id >= 12) abort();
       }},
      {"prompt",  // ours
       [](std::string_view b) { read_prompt(put("prompt.safetensors", b), 4); }},
      {"peft",
       [](std::string_view b) {
         put_all({"p/adapter_config.json", "p/adapter_model.safetensors"}, parts_of(b));
         read_prompt(folder() + "/p", 4);
       }},
      {"checkpoint",
       [](std::string_view b) {
         const TrainState s = read_state(read_tensors(put("checkpoint.safetensors", b)), 2, 4, 0);
         if (s.step < 0 || s.prompt.size() != 8 || !s.mean.empty()) abort();
       }},
      {"run_config",
       [](std::string_view b) {
         put("r/config.json", b);
         read_config(folder() + "/r");
       }},
      {"npy", [](std::string_view b) { read_npy(put("x.npy", b)); }},
  };
  return all;
}

// One input; true when it was accepted.
inline bool run(const std::string& target, std::string_view bytes) {
  std::error_code ignored;
  for (const auto& entry : fs::directory_iterator(folder(), ignored)) fs::remove_all(entry.path(), ignored);
  try {
    targets().at(target)(bytes);
    return true;
  } catch (const Error& e) {
    if (e.code != Exit::input) throw;
    const std::string sentence = e.what();
    if (sentence.empty() || sentence.find('\n') != sentence.npos) abort();
    return false;
  }
}

}  // namespace quest::fuzz
