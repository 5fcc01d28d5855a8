#include "mpi/collectives.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "core/require.h"

namespace sparsegpt {

namespace {

constexpr int64_t chunk_elements = int64_t{1} << 21;  // that are summed at a time
constexpr int64_t chunk_bytes = int64_t{1} << 24;  // that are copied at a time

// The elements of some rows of a matrix one after the other, in each row from column `row - first_row` on or, of a whole matrix,
// all of them.
class Elements {
 public:
  Elements(float* rows, int64_t count, int64_t columns, int64_t first_row, bool upper)
      : rows_(rows), count_(count), columns_(columns), first_row_(first_row), upper_(upper) {
    begin_row();
  }

  // Copies up to `most` elements from here on to `out`, or from `in`; returns how many, 0 at the end.
  int64_t copy(float* out, const float* in, int64_t most) {
    int64_t copied = 0;
    while (copied < most && row_ < count_) {
      const int64_t some = std::min(most - copied, columns_ - column_);
      float* here = rows_ + row_ * columns_ + column_;
      if (out != nullptr)
        std::copy_n(here, some, out + copied);
      else
        std::copy_n(in + copied, some, here);
      copied += some;
      column_ += some;
      if (column_ == columns_) {
        ++row_;
        begin_row();
      }
    }
    return copied;
  }

 private:
  void begin_row() { column_ = upper_ ? std::min(first_row_ + row_, columns_) : 0; }

  float* rows_;
  const int64_t count_, columns_, first_row_;
  const bool upper_;
  int64_t row_ = 0, column_ = 0;
};

// Adds the parts, [ranks][per], into the first.
void sum_parts(float* parts, int64_t ranks, int64_t per) {
  for (int64_t step = 1; step < ranks; step *= 2) {
    for (int64_t r = 0; r + step < ranks; r += 2 * step) {
      float* __restrict to = parts + r * per;
      const float* __restrict from = parts + (r + step) * per;
      for (int64_t i = 0; i < per; ++i) to[i] += from[i];
    }
  }
}

// Each rank sums a slice of every chunk, and then all get all slices.
void reduce_elements(Transport& transport, Elements elements, std::vector<float>& send, std::vector<float>& receive) {
  const int64_t ranks = transport.size();
  const int64_t most = std::max(chunk_elements / ranks, int64_t{1}) * ranks;
  send.resize(static_cast<size_t>(most));
  receive.resize(static_cast<size_t>(most));
  for (;;) {
    Elements from = elements;
    const int64_t count = from.copy(send.data(), nullptr, most);
    if (count == 0) return;
    const int64_t per = (count + ranks - 1) / ranks;
    std::fill(send.begin() + count, send.begin() + per * ranks, 0.0f);
    const int bytes = static_cast<int>(per * int64_t{sizeof(float)});
    transport.all_to_all(reinterpret_cast<const std::byte*>(send.data()), reinterpret_cast<std::byte*>(receive.data()),
                         bytes);
    sum_parts(receive.data(), ranks, per);
    std::copy_n(receive.data(), per, send.data() + transport.rank() * per);
    transport.all_gather(reinterpret_cast<std::byte*>(send.data()), bytes);
    elements.copy(nullptr, send.data(), count);
  }
}

}  // namespace

void all_reduce(Backend& backend, Transport& transport, const Tensor& x, bool upper) {
  require_plain(x, x.rows, x.columns, DType::f32, "what is summed over ranks");
  if (transport.size() == 1) return;
  std::vector<float> send, receive;
  if (backend.in_host_memory())
    return reduce_elements(transport, {x.data<float>(), x.rows, x.columns, 0, upper}, send, receive);
  const int64_t rows = std::max(4 * chunk_elements / std::max(x.columns, int64_t{1}), int64_t{1});
  std::vector<float> host;
  for (int64_t first = 0; first < x.rows; first += rows) {
    const Tensor part = x.row_range(first, std::min(rows, x.rows - first));
    host.resize(static_cast<size_t>(part.size()));
    backend.download(host.data(), part);
    reduce_elements(transport, {host.data(), part.rows, part.columns, first, upper}, send, receive);
    backend.upload(part, host.data());
  }
}

void broadcast(Backend& backend, Transport& transport, const Tensor& x, int root) {
  require(x && x.contiguous(), "what is copied to all ranks must be contiguous");
  require(root >= 0 && root < transport.size(), "there is no such rank to copy from");
  if (transport.size() == 1) return;
  const auto width = static_cast<int64_t>(dtype_size(x.dtype));
  const Tensor flat = x.reshaped(1, x.size());
  const int64_t most = chunk_bytes / width;
  std::vector<std::byte> host;
  for (int64_t first = 0; first < flat.columns; first += most) {
    const Tensor part = flat.column_range(first, std::min(most, flat.columns - first));
    const auto bytes = static_cast<int>(part.columns * width);
    if (backend.in_host_memory()) {
      transport.broadcast(part.bytes(), bytes, root);
      continue;
    }
    host.resize(static_cast<size_t>(bytes));
    if (transport.rank() == root) backend.download(host.data(), part);
    transport.broadcast(host.data(), bytes, root);
    if (transport.rank() != root) backend.upload(part, host.data());
  }
}

}  // namespace sparsegpt
