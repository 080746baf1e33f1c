#include "kernels/quant.h"

#include "kernels/base/error.h"
#include "kernels/tile.h"

namespace quest {

void decode(Type type, const void* row, int64_t first, int64_t count, float* out) {
  if (type > Type::q8_0) fail(Exit::machine, "decode: type %d has no decoder", static_cast<int>(type));
  rows_portable.decode[static_cast<int>(type)](static_cast<const std::byte*>(row) + row_bytes(type, first),
                                               count, out);
}

}  // namespace quest
