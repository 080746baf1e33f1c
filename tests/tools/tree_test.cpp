// The tree itself: which folder includes which, how long it is, and how missing libraries are met.
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>

#include "kernels/base/error.h"
#include "kernels/base/file.h"

using namespace quest;
namespace fs = std::filesystem;

namespace {

const std::string root = SOURCE_ROOT;

class Folder {
 public:
  Folder() : path_(fs::temp_directory_path() / "quest-tree-XXXXXX") {
    if (!mkdtemp(path_.data())) fail(Exit::machine, "mkdtemp failed");
  }
  ~Folder() { fs::remove_all(path_); }
  std::string file(const std::string& name, const std::string& text) const {
    make_folders(fs::path(path_ + "/" + name).parent_path());
    write_file(path_ + "/" + name, text);
    return path_ + "/" + name;
  }
  // Exit status of a shell line run here; `said` gets what it printed.
  int shell(const std::string& line, std::string* said = nullptr) const {
    const int status = system(("cd " + path_ + " && { " + line + "; } >said 2>&1").c_str());
    if (said) *said = read_file(path_ + "/said");
    return WEXITSTATUS(status);
  }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

bool holds(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

}  // namespace

TEST(Tree, Layers) {
  Folder here;
  std::string said;
  EXPECT_EQ(here.shell("sh " + root + "/tests/layers.sh", &said), 0) << said;
}

TEST(Tree, Size) {
  Folder here;
  std::string said;
  EXPECT_EQ(here.shell("sh " + root + "/tests/size.sh", &said), 0) << said;
}

TEST(Tree, LayersFindsEveryKindOfBreach) {
  const std::pair<const char*, const char*> breaches[] = {
      {"model/a.cpp", "#include \"train/step.h\"\n"},
      {"model/a.cpp", "#include \"sampling/dataset.h\"\n"},
      {"sampling/a.cpp", "#include \"kernels/ops.h\"\n"},
      {"index/a.h", "#include \"model/llama.h\"\n"},
      {"kernels/a.h", "#include \"model/llama.h\"\n"},
      {"kernels/base/a.h", "#include \"kernels/ops.h\"\n"},
      {"train/a.cpp", "  #  include \"tools/options.h\"\n"},
      {"model/a.cpp", "#include \"llama.h\"\n"},
      {"model/a.cpp", "#ifdef NDEBUG\n#endif\n"},
      {"tools/a.cpp", "#if 1\n#endif\n"},
      {"kernels/a.cpp", "std::vector<int> a;\n"},
      {"model/forward.cpp", "std::function<int()> f;\n"},
      {"train/step.h", "std::string name;\n"},
      {"kernels/tile_avx2.cpp", "#include <algorithm>\n"},
      {"kernels/tile_avx2.cpp", "#include \"kernels/ops.h\"\n"}};
  for (const auto& [name, text] : breaches) {
    Folder here;
    std::string said;
    for (const char* folder : {"kernels/base", "model", "sampling", "index", "train", "tools"})
      here.file(std::string(folder) + "/empty.h", "#pragma once\n");
    here.file("index/hnsw.cpp", "#include <hnswlib/hnswlib.h>\n#include \"kernels/base/file.h\"\n");
    here.file("train/b.cpp",
              "#include \"model/llama.h\"  // #include \"tools/no.h\"\n/*\n#if 1\n*/\nstd::vector<int> a;\n");
    here.file("kernels/backend.cpp",
              "#ifdef CUDA\n#endif\n// std::vector\nconst char* a = \"std::vector\";\n");
    here.file("kernels/tile_a.cpp", "#include <immintrin.h>\n#include <stdint.h>\n");
    ASSERT_EQ(here.shell("sh " + root + "/tests/layers.sh .", &said), 0) << said;
    here.file(name, text);
    EXPECT_EQ(here.shell("sh " + root + "/tests/layers.sh .", &said), 1) << name << ": " << text;
    EXPECT_TRUE(holds(said, std::string(name) + ":1: ")) << said;
  }
  Folder here;
  here.file("index/a.cpp", "#include <hnswlib/hnswlib.h>\n");
  here.file("index/b.cpp", "#include <hnswlib/hnswlib.h>\n");
  EXPECT_EQ(here.shell("mkdir kernels model sampling train tools; sh " + root + "/tests/layers.sh ."), 1);
}

TEST(Tree, SizeCountsCodeAlone) {
  Folder here;
  std::string said, lines;
  for (const char* folder : {"kernels/base", "model", "sampling", "index", "train", "tools"})
    here.file(std::string(folder) + "/empty.h", "");
  here.file("model/a.cpp",
            "// no\n\nint a;  // yes\n/* no\n no */ int b; /* yes */\nconst char* c = \"/*\";\n  // " +
                std::string(120, '-') + "\nint d = '\"';\n");
  EXPECT_EQ(here.shell("sh " + root + "/tests/size.sh .", &said), 0) << said;
  EXPECT_TRUE(holds(said, "     4  model\n")) << said;
  here.file("model/b.cpp", "int " + std::string(105, 'x') + ";\n");  // 110 columns
  EXPECT_EQ(here.shell("sh " + root + "/tests/size.sh .", &said), 0) << said;
  here.file("model/b.cpp", "int " + std::string(106, 'x') + ";\n");
  EXPECT_EQ(here.shell("sh " + root + "/tests/size.sh .", &said), 1);
  EXPECT_TRUE(holds(said, "model/b.cpp:1: 111 columns")) << said;
  for (int i = 0; i <= 12000; ++i) lines += "int x;\n";
  here.file("model/b.cpp", lines);
  EXPECT_EQ(here.shell("sh " + root + "/tests/size.sh .", &said), 1);
}

// tools/libraries.sh against an apt-get, id and sudo of our own.
TEST(Tree, MissingLibraries) {
  const auto install = [](const std::string& apt, const std::string& id, const std::string& sudo,
                          const std::string& arguments, std::string* said) {
    Folder here;
    const std::pair<const char*, std::string> programs[] = {{"apt-get", apt}, {"id", id}, {"sudo", sudo}};
    for (const auto& [name, text] : programs)
      if (!text.empty()) here.file(std::string("bin/") + name, "#!/bin/sh\n" + text + "\n");
    here.shell("chmod +x bin/*; for p in sh env echo grep head; do ln -s $(command -v $p) bin/$p; done");
    here.file("calls", "");
    const int status =
        here.shell("PATH=" + here.path() + "/bin " + arguments.substr(0, arguments.find('|')) + " sh " +
                       root + "/tools/libraries.sh " + arguments.substr(arguments.find('|') + 1),
                   said);
    *said += read_file(here.path() + "/calls");
    return status;
  };
  const std::string root_id = "echo 0", user_id = "echo 1000", log = "echo apt \"$*\" >>calls; ";
  std::string said;
  EXPECT_EQ(install(log, root_id, "", "|'a b' c", &said), 0) << said;
  EXPECT_TRUE(holds(said, "  APT   a\n  APT   b\n  APT   c\n") &&
              holds(said, "apt install -y --no-install-recommends"))
      << said;
  EXPECT_FALSE(holds(said, "update"));
  EXPECT_EQ(
      install(log + "test -e updated || { [ $1 = update ] && : >updated; }", root_id, "", "|'a b' ''", &said),
      0)
      << said;
  EXPECT_TRUE(holds(said, "APT   update")) << said;
  EXPECT_EQ(install(log, user_id, "exit 1", "|'a b' ''", &said), 1);
  EXPECT_TRUE(holds(said, "run as root: apt-get install -y --no-install-recommends a b\n")) << said;
  EXPECT_FALSE(holds(said, "apt install")) << said;
  EXPECT_EQ(install(log, user_id, "[ \"$1\" = -n ] && shift && exec env \"$@\"", "|'a b' ''", &said), 1)
      << said;  // no `true`
  EXPECT_EQ(install(log, root_id, "", "DEPS=0|'a b' c", &said), 1);
  EXPECT_TRUE(holds(said, "run as root: apt-get install -y --no-install-recommends a b c\n")) << said;
  EXPECT_FALSE(holds(said, "apt install")) << said;
  EXPECT_EQ(install(log, root_id, "", "DEPS=0|'' c", &said), 0) << said;  // pip alone does not stop the build
  EXPECT_EQ(install(log + "echo 'E: Unable to locate package c'; exit 100", root_id, "", "|'' c", &said), 0)
      << said;
  EXPECT_EQ(install(log + "echo 'E: Unable to locate package a'; exit 100", root_id, "", "|'a' c", &said), 1)
      << said;
  EXPECT_TRUE(holds(said, "E: Unable to locate package a")) << said;
  EXPECT_EQ(install("", root_id, "", "|'a b' ''", &said), 1) << said;
  EXPECT_TRUE(holds(said, "this system has no apt-get")) << said;
}
