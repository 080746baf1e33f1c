#include "kernels/base/file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <utility>

#include "kernels/base/error.h"

namespace quest {

namespace fs = std::filesystem;

MappedFile::MappedFile(const std::string& path) : path_(path) {
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  struct stat st{};
  if (fd < 0 || fstat(fd, &st) != 0 || !S_ISREG(st.st_mode)) {
    const int why = fd < 0 ? errno : EISDIR;
    if (fd >= 0) close(fd);
    fail(Exit::input, "%s: expected a readable file, found: %s; check the path", path.c_str(), strerror(why));
  }
  size_ = static_cast<size_t>(st.st_size);
  void* map = size_ ? mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, fd, 0) : nullptr;
  close(fd);
  if (map == MAP_FAILED) fail(Exit::machine, "%s: cannot map %zu bytes: %s", path.c_str(), size_, strerror(errno));
  data_ = static_cast<const std::byte*>(map);
}

MappedFile::MappedFile(MappedFile&& other) noexcept { *this = std::move(other); }

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  std::swap(path_, other.path_);
  return *this;
}

MappedFile::~MappedFile() {
  if (data_) munmap(const_cast<std::byte*>(data_), size_);
}

void MappedFile::require_multiple(size_t element) const {
  if (size_ % element)
    fail(Exit::input, "%s: expected a multiple of %zu bytes, found %zu; the file is damaged, make it again",
         path_.c_str(), element, size_);
}

[[noreturn]] static void fail_write(const std::string& path, const char* what) {
  fail(Exit::machine, "%s: %s failed: %s; free space or choose another folder, then run again", path.c_str(), what,
       strerror(errno));
}

OutFile::OutFile(const std::string& path) : path_(path), temporary_(path + ".tmp") {
  fd_ = open(temporary_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (fd_ < 0) fail_write(temporary_, "opening for writing");
}

OutFile::~OutFile() {
  if (fd_ < 0) return;
  close(fd_);
  unlink(temporary_.c_str());
}

void OutFile::write(const void* bytes, size_t count) {
  buffer_.append(static_cast<const char*>(bytes), count);
  if (buffer_.size() >= (1u << 14)) flush();  // small: an import holds a dozen of these
}

void OutFile::flush() {
  for (size_t done = 0; done < buffer_.size();) {
    const ssize_t n = ::write(fd_, buffer_.data() + done, buffer_.size() - done);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) fail_write(temporary_, "write");
    done += static_cast<size_t>(n);
  }
  buffer_.clear();
}

void OutFile::commit() {
  flush();
  if (fsync(fd_) != 0) fail_write(temporary_, "fsync");
  if (rename(temporary_.c_str(), path_.c_str()) != 0) fail_write(path_, "rename");
  close(std::exchange(fd_, -1));
  sync_folder(fs::path(path_).parent_path());
}

void write_file(const std::string& path, std::string_view text) {
  OutFile out(path);
  out.write(text);
  out.commit();
}

std::string read_file(const std::string& path) { return std::string(MappedFile(path).text()); }

bool exists(const std::string& path) {
  std::error_code ignored;
  return fs::exists(path, ignored);
}

void make_folders(const std::string& path) {
  std::error_code why;
  if (!path.empty()) fs::create_directories(path, why);
  if (why) fail(Exit::machine, "%s: cannot make the folder: %s", path.c_str(), why.message().c_str());
}

void sync_folder(const std::string& path) {
  const int fd = open(path.empty() ? "." : path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  const int result = fd < 0 ? -1 : fsync(fd);
  if (fd >= 0) close(fd);
  if (result != 0) fail_write(path, "fsync of the folder");
}

OutFolder::OutFolder(const std::string& path) : path_(path) {
  while (path_.size() > 1 && path_.back() == '/') path_.pop_back();
  temporary_ = path_ + ".tmp";
  if (exists(path_)) fail(Exit::usage, "%s: exists already; choose another name or remove it first", path_.c_str());
  std::error_code ignored;
  fs::remove_all(temporary_, ignored);
  make_folders(temporary_);
}

OutFolder::~OutFolder() {
  std::error_code ignored;
  if (!committed_) fs::remove_all(temporary_, ignored);
}

void OutFolder::commit() {
  sync_folder(temporary_);
  if (rename(temporary_.c_str(), path_.c_str()) != 0) fail_write(path_, "rename");
  committed_ = true;
  sync_folder(fs::path(path_).parent_path());
}

}  // namespace quest
