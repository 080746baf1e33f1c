// Files: read through a read-only map, written by write() to a temporary file, synced, renamed. Nothing
// half-written stays.
#pragma once
#include <cstddef>
#include <fstream>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "kernels/base/error.h"

namespace quest {

// A file mapped read-only while this object or a copy lives. An empty file maps to an empty span.
class MappedFile {
 public:
  MappedFile() = default;
  explicit MappedFile(const std::string& path);  // throws Error(input) when it cannot be opened

  const std::byte* data() const { return data_.get(); }
  size_t size() const { return size_; }
  const std::string& path() const { return path_; }
  std::string_view text() const { return {reinterpret_cast<const char*>(data()), size_}; }

  // The whole file as an array of T; throws Error(input) unless its size is a multiple of sizeof(T).
  template <class T>
  std::span<const T> array() const {
    if (size_ % sizeof(T))
      fail(Exit::input, "%s: expected a multiple of %zu bytes, found %zu; the file is damaged, make it again",
           path_.c_str(), sizeof(T), size_);
    return {reinterpret_cast<const T*>(data()), size_ / sizeof(T)};
  }

 private:
  std::shared_ptr<const std::byte> data_;
  size_t size_ = 0;
  std::string path_;
};

// Buffered writer of PATH.tmp; commit() flushes, syncs and renames it to PATH. Without it nothing stays.
// Every failure throws Error(machine).
class OutFile {
 public:
  explicit OutFile(const std::string& path);
  ~OutFile();
  void write(const void* bytes, size_t count);
  void write(std::string_view text) { write(text.data(), text.size()); }
  void put(const auto& value) { write(&value, sizeof value); }
  void commit();

 private:
  std::string path_, temporary_;
  std::ofstream out_;
};

void write_file(const std::string& path, std::string_view text);  // OutFile in one call
std::string read_file(const std::string& path);                   // throws Error(input)
bool exists(const std::string& path);
bool is_folder(const std::string& path);
void make_folders(const std::string& path);  // mkdir -p; throws Error(machine)
void sync(const std::string& path);          // fsync of a file or a folder; throws Error(machine)

// A file that one process holds at a time, for as long as this object lives. Throws Error(machine) when
// another does; what: what that one is at work on.
class FileLock {
 public:
  FileLock() = default;
  FileLock(const std::string& path, const char* what);

 private:
  std::shared_ptr<const int> held_;  // closed, and with that free, behind the last copy
};

// Builds a folder beside its place (PATH.tmp) and moves it there by commit(); removed when not committed.
// An existing PATH is refused (Error(usage)).
class OutFolder {
 public:
  explicit OutFolder(const std::string& path);
  OutFolder(OutFolder&&) = delete;
  ~OutFolder();
  std::string file(const std::string& name) const { return temporary_ + "/" + name; }
  void commit();

 private:
  std::string path_, temporary_;
};

}  // namespace quest
