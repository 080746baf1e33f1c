// What many tests share: a temporary folder, files in it, and the sentence of an Error.
#pragma once
#include <gtest/gtest.h>
#include <stdlib.h>
#include <zlib.h>

#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/base/error.h"
#include "kernels/base/file.h"

namespace quest {

class TemporaryFolder {
 public:
  TemporaryFolder() {
    char name[] = "/tmp/quest-test-XXXXXX";
    path_ = mkdtemp(name);
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  ~TemporaryFolder() { std::filesystem::remove_all(path_); }
  std::string operator/(const std::string& name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

// Unlike write_file() neither synced nor renamed, and with the folders above.
inline void put_file(const std::string& path, std::string_view text) {
  std::filesystem::create_directories(std::filesystem::path(path).parent_path());
  FILE* file = fopen(path.c_str(), "wb");
  ASSERT_TRUE(file);
  ASSERT_EQ(fwrite(text.data(), 1, text.size(), file), text.size());
  ASSERT_EQ(fclose(file), 0);
}

inline void put_gzip(const std::string& path, std::string_view text) {
  std::filesystem::create_directories(std::filesystem::path(path).parent_path());
  gzFile file = gzopen(path.c_str(), "wb6");
  ASSERT_TRUE(file);
  ASSERT_EQ(gzwrite(file, text.data(), static_cast<unsigned>(text.size())), static_cast<int>(text.size()));
  ASSERT_EQ(gzclose(file), Z_OK);
}

// The sentence of the Error that f throws; "" and a failure when it throws none or another code.
template <class F>
std::string sentence_of(Exit code, F&& f) {
  try {
    f();
  } catch (const Error& error) {
    EXPECT_EQ(error.code, code) << error.what();
    return error.what();
  }
  ADD_FAILURE() << "expected an Error, found none";
  return "";
}

inline void expect_contains(const std::string& text, const std::string& part) {
  EXPECT_NE(text.find(part), text.npos) << "expected \"" << part << "\" in: " << text;
}

// f must throw Error(input), one line with every part in it.
template <class F>
void expect_input_error(const std::vector<std::string>& parts, F&& f) {
  const std::string sentence = sentence_of(Exit::input, f);
  EXPECT_EQ(sentence.find('\n'), sentence.npos) << sentence;
  for (const std::string& part : parts) expect_contains(sentence, part);
}

}  // namespace quest
