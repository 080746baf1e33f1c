// The op table of a GPU.
#include "kernels/cuda/ops.h"

#include "kernels/base/arena.h"
#include "kernels/base/threads.h"
#include "kernels/cuda/matmul.cuh"
#include "kernels/cuda/runtime.h"
#include "kernels/matmul.h"

namespace quest {

namespace {

const void* bring(const Context& c, const void* data, size_t bytes, const char* name) {
  if (bytes == 0) return data;  // an absent one stays absent
  void* to = c.arena->allocate(bytes, {name, "bytes", static_cast<int64_t>(bytes), 1});
  if (c.device) c.device->send(to, data, bytes);
  return to;
}

void fetch(const Context& c, const void* from, size_t bytes, void* to) {
  if (c.device && bytes) c.device->receive(to, from, bytes);
}

// The table's rows are decoded into the staging buffer. A row of x is its row there.
void embed(const Context& c, View table, const int32_t* ids, View x) {
  if (!c.device || x.rows == 0) return;
  const auto decode = c.ops->kernel_path->row->decode[static_cast<int>(table.type)];
  const auto fill = [&](std::byte* at, int64_t first, int64_t count) {
    c.threads->each(count, [&](int64_t i, int) {
      decode(table.data, ids[first + i] * table.stride, x.cols, reinterpret_cast<float*>(at) + i * x.cols);
    });
  };
  c.device->send_rows(x.data, x.stride * sizeof(float), x.cols * sizeof(float), x.rows, fill);
}

void product(const Context& c, View x, View w, View y, Into into) {
  if (!c.device) return;
  ++c.device->launches;
  cuda_matmul(Rung::tensor, x, w, y, into, c.device->stream);
}
void product_backward(const Context& c, View dy, View w, View dx, Into into) {
  if (!c.device) return;
  ++c.device->launches;
  cuda_matmul_backward(Rung::tensor, dy, w, dx, into, c.device->stream);
}

}  // namespace

Ops cuda_ops(Type activation) {
  Ops o{};
  o.path = "cuda";
  o.kernel_path = find_path(nullptr);
  o.activation = activation, o.accumulator = Type::f32;
  o.apart = true;
  o.bring = bring, o.fetch = fetch, o.embed = embed;
  o.gather = cuda::gather, o.gather_backward = cuda::gather_backward;
  o.add = cuda::add, o.zero = cuda::zero;
  o.rmsnorm = cuda::rmsnorm, o.rmsnorm_backward = cuda::rmsnorm_backward;
  o.matmul = product, o.matmul_backward = product_backward;
  o.rope = cuda::rope, o.rope_backward = cuda::rope_backward;
  o.attention = cuda::attention, o.attention_backward = cuda::attention_backward;
  o.swiglu = cuda::swiglu, o.swiglu_backward = cuda::swiglu_backward;
  o.pool = cuda::pool, o.pool_backward = cuda::pool_backward;
  o.normalize = cuda::normalize, o.normalize_backward = cuda::normalize_backward;
  o.similarity = cuda::similarity, o.similarity_backward = cuda::similarity_backward;
  o.contrastive = cuda::contrastive, o.contrastive_backward = cuda::contrastive_backward;
  o.norm = cuda::norm, o.adamw = cuda::adamw;
  return o;
}

}  // namespace quest
