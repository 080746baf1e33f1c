#include "kernels/base/file.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>

namespace quest {

namespace fs = std::filesystem;

MappedFile::MappedFile(const std::string& path) : path_(path) {
  std::error_code why;
  size_ = fs::file_size(path, why);  // fails for all but regular files
  const int fd = why ? -1 : open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0)
    fail(Exit::input, "%s: expected a readable file, found: %s; check the path", path.c_str(),
         why ? why.message().c_str() : strerror(errno));
  void* map = size_ ? mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, fd, 0) : nullptr;
  close(fd);
  if (map == MAP_FAILED) fail(Exit::machine, "%s: cannot map %zu bytes: %m", path.c_str(), size_);
  data_.reset(static_cast<const std::byte*>(map), [map, n = size_](auto*) { munmap(map, n); });
}

[[noreturn]] static void fail_write(const std::string& path, const char* what) {
  fail(Exit::machine, "%s: %s failed: %m; free space or choose another folder, then run again", path.c_str(),
       what);
}

void sync(const std::string& path) {
  const int fd = open(path.empty() ? "." : path.c_str(), O_RDONLY | O_CLOEXEC);
  const bool done = fd >= 0 && fsync(fd) == 0;
  if (fd >= 0) close(fd);
  if (!done) fail_write(path, "fsync");
}

static void move_synced(const std::string& from, const std::string& to) {
  sync(from);
  if (rename(from.c_str(), to.c_str()) != 0) fail_write(to, "rename");
  sync(fs::path(to).parent_path());
}

OutFile::OutFile(const std::string& path)
    : path_(path), temporary_(path + ".tmp"), out_(temporary_, std::ios::binary) {
  if (!out_) fail_write(temporary_, "opening for writing");
}

OutFile::~OutFile() { unlink(temporary_.c_str()); }  // nothing, after commit()

void OutFile::write(const void* bytes, size_t count) {
  if (!out_.write(static_cast<const char*>(bytes), count)) fail_write(temporary_, "write");
}

void OutFile::commit() {
  if (!out_.flush()) fail_write(temporary_, "write");
  move_synced(temporary_, path_);
}

void write_file(const std::string& path, std::string_view text) {
  OutFile out(path);
  out.write(text);
  out.commit();
}

std::string read_file(const std::string& path) { return std::string(MappedFile(path).text()); }

bool exists(const std::string& path) { return access(path.c_str(), F_OK) == 0; }

bool is_folder(const std::string& path) {
  std::error_code ignored;
  return fs::is_directory(path, ignored);
}

void make_folders(const std::string& path) {
  std::error_code why;
  if (!path.empty()) fs::create_directories(path, why);
  if (why) fail(Exit::machine, "%s: cannot make the folder: %s", path.c_str(), why.message().c_str());
}

FileLock::FileLock(const std::string& path, const char* what) {
  const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (file < 0) fail(Exit::machine, "%s: cannot be opened: %m; see to it that it can be read", path.c_str());
  held_ = {new int(file), [](const int* f) { close(*f), delete f; }};
  if (flock(file, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK)
    fail(Exit::machine, "%s: expected to be alone, found another process at work on %s; wait for its end",
         path.c_str(), what);
}

OutFolder::OutFolder(const std::string& path) : path_(path) {
  while (path_.size() > 1 && path_.back() == '/') path_.pop_back();
  temporary_ = path_ + ".tmp";
  if (exists(path_))
    fail(Exit::usage, "%s: exists already; choose another name or remove it first", path_.c_str());
  std::error_code ignored;
  fs::remove_all(temporary_, ignored);
  make_folders(temporary_);
}

OutFolder::~OutFolder() {
  std::error_code ignored;
  fs::remove_all(temporary_, ignored);
}

void OutFolder::commit() { move_synced(temporary_, path_); }

}  // namespace quest
