// Sums over, and copies to, ranks: here the threads of this process.
#include "mpi/collectives.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstring>
#include <mutex>
#include <thread>
#include <vector>

#include "test/check.h"
#include "test/cuda_devices.h"
#include "test/on_device.h"

using namespace sparsegpt;
using namespace sparsegpt::test;

namespace {

// Where the ranks meet: each call waits for all.
class Meeting {
 public:
  explicit Meeting(int size) : size_(size), places_(static_cast<size_t>(size)) {}
  // Calls read(places) once all ranks have come, each with the place of its data; returns when all have read.
  template <typename Read>
  void meet(int rank, const std::byte* place, const Read& read) {
    places_[static_cast<size_t>(rank)] = place;
    wait();
    read(places_);
    wait();
  }
  int size() const { return size_; }

 private:
  void wait() {
    std::unique_lock<std::mutex> lock(mutex_);
    const int64_t round = round_;
    if (++arrived_ == size_) {
      arrived_ = 0;
      ++round_;
      all_.notify_all();
    } else {
      all_.wait(lock, [&] { return round_ != round; });
    }
  }

  const int size_;
  std::vector<const std::byte*> places_;
  std::mutex mutex_;
  std::condition_variable all_;
  int arrived_ = 0;
  int64_t round_ = 0;
};

class ThreadTransport : public Transport {
 public:
  ThreadTransport(int rank, Meeting& meeting) : rank_(rank), meeting_(meeting) {}
  int rank() const override { return rank_; }
  int size() const override { return meeting_.size(); }
  void all_to_all(const std::byte* send, std::byte* receive, int bytes) override {
    count(bytes);
    meeting_.meet(rank_, send, [&](const auto& places) {
      for (int r = 0; r < size(); ++r)
        std::memcpy(receive + int64_t{r} * bytes, places[static_cast<size_t>(r)] + int64_t{rank_} * bytes,
                    static_cast<size_t>(bytes));
    });
  }
  void all_gather(std::byte* all, int bytes) override {
    count(bytes);
    meeting_.meet(rank_, all, [&](const auto& places) {
      for (int r = 0; r < size(); ++r)
        if (r != rank_)
          std::memcpy(all + int64_t{r} * bytes, places[static_cast<size_t>(r)] + int64_t{r} * bytes,
                      static_cast<size_t>(bytes));
    });
  }
  void broadcast(std::byte* data, int bytes, int root) override {
    count(bytes);
    meeting_.meet(rank_, data, [&](const auto& places) {
      if (rank_ != root) std::memcpy(data, places[static_cast<size_t>(root)], static_cast<size_t>(bytes));
    });
  }
  int calls = 0, largest = 0;

 private:
  void count(int bytes) {
    ++calls;
    largest = std::max(largest, bytes);
  }
  const int rank_;
  Meeting& meeting_;
};

// Runs body(device, transport) of every rank on a device of its own, made by make().
template <typename Make, typename Body>
void on_ranks(int size, const Make& make, const Body& body) {
  Meeting meeting(size);
  std::vector<std::thread> ranks;
  for (int r = 0; r < size; ++r)
    ranks.emplace_back([&, r] {
      OnDevice device(make());
      ThreadTransport transport(r, meeting);
      body(device, transport);
    });
  for (auto& rank : ranks) rank.join();
}

// Backends of their own, since devices that share one take turns.
std::shared_ptr<Backend> cpu_of_its_own() {
  static std::atomic<int> threads{1};
  return cpu_kind().open(0, threads++ % 30 + 1);
}

float value_of(int rank, int64_t i) { return static_cast<float>((i * 31 + rank * 17) % 1009) * 0.37f - 100; }

float tree_sum(int ranks, int64_t i) {
  std::vector<float> parts;
  for (int r = 0; r < ranks; ++r) parts.push_back(value_of(r, i));
  while (parts.size() > 1) {
    std::vector<float> pairs;
    for (size_t p = 0; p < parts.size(); p += 2) pairs.push_back(p + 1 < parts.size() ? parts[p] + parts[p + 1] : parts[p]);
    parts.swap(pairs);
  }
  return parts[0];
}

template <typename Make>
void check_sums(const std::string& name, const Make& make) {
  struct Case {
    int ranks;
    int64_t rows, columns;
    bool upper;
  };
  for (const Case& c : {Case{2, 1, 7, false}, Case{3, 5, 5, true}, Case{2, 2100, 2100, true}, Case{3, 1500, 1501, false},
                        Case{5, 1, 3, false}, Case{2, 40, 40, true}}) {
    describe_case(name, ", ", c.ranks, " ranks, [", c.rows, ", ", c.columns, "]", c.upper ? ", upper triangle" : "");
    std::atomic<int64_t> wrong{0};
    on_ranks(c.ranks, make, [&](OnDevice& device, ThreadTransport& transport) {
      std::vector<float> own(static_cast<size_t>(c.rows * c.columns));
      for (size_t i = 0; i < own.size(); ++i) own[i] = value_of(transport.rank(), static_cast<int64_t>(i));
      const Tensor x = device.floats(DType::f32, c.rows, c.columns, own);
      device.run([&](Backend& b) { all_reduce(b, transport, x, c.upper); });
      const std::vector<float> sums = device.read(x);
      for (size_t i = 0; i < sums.size(); ++i) {
        const auto place = static_cast<int64_t>(i);
        const bool stays = c.upper && place % c.columns < place / c.columns;
        wrong += sums[i] != (stays ? own[i] : tree_sum(c.ranks, place));
      }
    });
    CHECK_EQUAL(wrong.load(), int64_t{0});
  }
}

template <typename Make>
void check_copies(const std::string& name, const Make& make) {
  for (const int root : {0, 2}) {
    describe_case(name, ", from rank ", root);
    constexpr int64_t size = (int64_t{1} << 24) + 1000;  // more than is sent at once
    std::atomic<int> wrong{0}, calls{0};
    on_ranks(3, make, [&](OnDevice& device, ThreadTransport& transport) {
      std::vector<uint8_t> own(static_cast<size_t>(size), static_cast<uint8_t>(transport.rank() + 1));
      own.back() = static_cast<uint8_t>(transport.rank() + 7);
      const Tensor x = device.upload(DType::u8, 1, size, own.data());
      device.run([&](Backend& b) { broadcast(b, transport, x, root); });
      const auto copied = device.read_as<uint8_t>(x);
      wrong += copied.front() != root + 1 || copied[size - 2] != root + 1 || copied.back() != root + 7;
      calls += transport.calls;
    });
    CHECK_EQUAL(wrong.load(), 0);
    CHECK_EQUAL(calls.load(), 6);
  }
}

}  // namespace

TEST("collectives: a sum over ranks is the tree's, to the last bit, of the upper triangle if that is asked for") {
  check_sums("CPU", cpu_of_its_own);
}

TEST("collectives: a copy comes to all ranks in pieces") { check_copies("CPU", cpu_of_its_own); }

TEST("collectives: the same of a GPU's memory") {
  for_every_gpu([](const std::string& name, const std::string& library) {
    const auto make = [&] { return make_cuda_backend(library); };
    check_sums(name, make);
    check_copies(name, make);
  });
}

TEST("collectives: what cannot be summed or copied is refused") {
  on_ranks(1, cpu_of_its_own, [](OnDevice& device, ThreadTransport& transport) {
    const Tensor half = device.floats(DType::bf16, 2, 2, {1, 2, 3, 4});
    CHECK_THROWS_CODE(device.run([&](Backend& b) { all_reduce(b, transport, half, false); }), "INTERNAL",
                      "must be contiguous float32");
    CHECK_THROWS_CODE(device.run([&](Backend& b) { broadcast(b, transport, half.column_range(0, 1), 0); }), "INTERNAL",
                      "contiguous");
    CHECK_THROWS_CODE(device.run([&](Backend& b) { broadcast(b, transport, half, 1); }), "INTERNAL", "no such rank");
  });
}
