#include "index/npy.h"

#include "tests/sampling/dataset_files.h"

namespace quest {
namespace {

const float numbers[] = {1, 2, 3, 4, 5, -0.5f};

std::string numpy(const std::string& header, const std::string& data, char version = 1) {
  std::string out = std::string("\x93NUMPY") + version + std::string(1, '\0');
  const uint32_t length = static_cast<uint32_t>(header.size());
  out.append(reinterpret_cast<const char*>(&length), version == 1 ? 2 : 4);
  return out + header + data;
}

TEST(Npy, ThereAndBack) {
  TemporaryFolder t;
  write_npy(t / "a.npy", {numbers, 2, 3});
  const std::string bytes = read_file(t / "a.npy");
  EXPECT_EQ(bytes.size() % 64, 24u);  // the data begin at a multiple of 64
  const Npy a = read_npy(t / "a.npy");
  EXPECT_EQ(a.vectors.count, 2);
  EXPECT_EQ(a.vectors.width, 3);
  EXPECT_EQ(memcmp(a.vectors.data, numbers, sizeof numbers), 0);
  write_npy(t / "none.npy", {numbers, 0, 3});
  EXPECT_EQ(read_npy(t / "none.npy").vectors.count, 0);
}

TEST(Npy, WhatNumpyWrites) {
  const std::string data(reinterpret_cast<const char*>(numbers), sizeof numbers);
  TemporaryFolder t;
  const auto header = [](size_t length, const std::string& text) {
    return text + std::string(length - text.size() - 1, ' ') + "\n";
  };
  const std::string good = "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }";
  for (const auto& [version, length] : {std::pair('\1', 118), {'\2', 116}, {'\3', 116}}) {
    put_file(t / "a.npy", numpy(header(static_cast<size_t>(length), good), data, version));
    EXPECT_EQ(read_npy(t / "a.npy").vectors.row(1)[2], -0.5f);
  }
  const auto refused = [&](const std::string& bytes, const char* part) {
    put_file(t / "b.npy", bytes);
    const std::string sentence = sentence_of(Exit::input, [&] { read_npy(t / "b.npy"); });
    expect_contains(sentence, part);
    expect_contains(sentence, t / "b.npy");
  };
  refused("", "another kind");
  refused("PK", "another kind");
  refused(numpy(header(118, good), data).substr(0, 100), "cut short");
  refused(numpy(header(118, good), data.substr(0, 20)), "number of bytes");
  refused(numpy(header(118, good), data + "x"), "number of bytes");
  refused(numpy(header(118, good), data + data), "number of bytes");
  refused(numpy(header(117, good), data), "not aligned");
  const auto with = [&](const std::string& part, const std::string& by) {
    std::string text = good;
    return numpy(header(118, text.replace(text.find(part), part.size(), by)), data);
  };
  refused(with("<f4", "<f8"), "type of number");
  refused(with("<f4", ">f4"), "type of number");
  refused(with("'descr'", "'x'"), "type of number");
  refused(with("False", "True"), "Fortran order");
  refused(with("(2, 3)", "(6,)"), "shape");
  refused(with("(2, 3)", "(-2, 3)"), "shape");
  refused(with("(2, 3)", "(4611686018427387904, 8)"), "number of bytes");
  std::string nan = data;
  nan.replace(0, 4, "\xff\xff\xff\x7f");
  refused(numpy(header(118, good), nan), "not finite");
}

}  // namespace
}  // namespace quest
