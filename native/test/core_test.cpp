// The thread pool, the device's queue, mapped and spill files, memory and tensor views.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <future>
#include <random>
#include <stdexcept>
#include <thread>
#include <vector>

#include "core/device.h"
#include "core/mapped_file.h"
#include "core/spill_file.h"
#include "core/thread_pool.h"
#include "cpu/cpu_backend.h"
#include "test/check.h"

using namespace sparsegpt;
using namespace sparsegpt::test;

// --- thread pool ------------------------------------------------------------------------------------------------------

TEST("thread pool: every index runs once, on a thread of the pool") {
  for (int threads : {1, 2, 3, 8}) {
    ThreadPool pool(threads);
    CHECK_EQUAL(pool.threads(), threads);
    for (int64_t count : {0, 1, 2, 7, 1000}) {
      describe_case(threads, " threads, ", count, " indices");
      std::vector<std::atomic<int>> runs(static_cast<size_t>(count));
      std::atomic<int> strangers{0};
      pool.parallel_for(count, [&](int64_t i, int thread) {
        ++runs[static_cast<size_t>(i)];
        if (thread < 0 || thread >= threads) ++strangers;
      });
      for (const auto& n : runs) CHECK_EQUAL(n.load(), 1);
      CHECK_EQUAL(strangers.load(), 0);
    }
  }
}

TEST("thread pool: an exception reaches the caller and the pool stays usable") {
  for (int threads : {1, 3}) {
    ThreadPool pool(threads);
    for (int64_t bad : {0, 50, 99}) {
      bool caught = false;
      try {
        pool.parallel_for(100, [&](int64_t i, int) {
          if (i == bad) throw std::runtime_error("index");
        });
      } catch (const std::runtime_error& error) {
        caught = std::string(error.what()) == "index";
      }
      CHECK(caught);
      std::atomic<int64_t> sum{0};
      pool.parallel_for(100, [&](int64_t i, int) { sum += i; });
      CHECK_EQUAL(sum.load(), int64_t{4950});
    }
  }
}

// Most end before all workers have come by.
TEST("thread pool: many short calls in succession") {
  ThreadPool pool(3);
  std::atomic<int64_t> sum{0};
  int64_t expected = 0;
  for (int64_t call = 0; call < 30000; ++call) {
    const int64_t count = 1 + call % 5;
    pool.parallel_for(count, [&](int64_t i, int) { sum += i + 1; });
    expected += count * (count + 1) / 2;
    if (sum != expected) break;
  }
  CHECK_EQUAL(sum.load(), expected);
}

// --- scratch memory ---------------------------------------------------------------------------------------------------

TEST("scratch: arrays that live at once are apart, and the memory of dead ones serves again") {
  ThreadPool pool(2);
  const float* first;
  {
    const auto a = pool.scratch<float>(100000), b = pool.scratch<float>(100000), none = pool.scratch<float>(0);
    CHECK_EQUAL(a.size(), int64_t{100000});
    CHECK_EQUAL(reinterpret_cast<uintptr_t>(a.data()) % 4096, uintptr_t{0});
    for (int64_t i = 0; i < a.size(); ++i) a[i] = 1, b[i] = 2;
    int64_t spoilt = 0;
    for (int64_t i = 0; i < a.size(); ++i) spoilt += a[i] != 1 || b[i] != 2;
    CHECK_EQUAL(spoilt, int64_t{0});
    first = a.data();
  }
  const auto small = pool.scratch<float>(100);  // takes no large block
  CHECK(small.data() != first);
  const auto again = pool.scratch<double>(45000);
  const auto other = pool.scratch<float>(100000);
  CHECK(again.data() != static_cast<const void*>(other.data()));
  CHECK(again.data() == static_cast<const void*>(first) || other.data() == first);
}

TEST("scratch: what is kept free is bounded, and the last used stays") {
  const auto mapped = [](const void* memory) { return msync(const_cast<void*>(memory), 4096, MS_ASYNC) == 0; };
  ThreadPool pool(1);
  const auto count = static_cast<int64_t>(ScratchPool::keep_bytes / 2);
  const void *old, *middle, *last, *large;
  {
    const auto a = pool.scratch<char>(count), b = pool.scratch<char>(count), c = pool.scratch<char>(count);
    const auto d = pool.scratch<char>(3 * count);
    large = d.data(), old = c.data(), middle = b.data(), last = a.data();  // in the order of their ends
    CHECK(mapped(large) && mapped(old));
  }
  CHECK(!mapped(large));
  CHECK(!mapped(old));
  CHECK(mapped(middle));
  CHECK(mapped(last));
}

// --- device -----------------------------------------------------------------------------------------------------------

TEST("device: operations run in the order of enqueuing") {
  Device device(make_cpu_backend(1));
  std::vector<int> order;
  for (int i = 0; i < 200; ++i) device.enqueue("step", [&order, i](Backend&) { order.push_back(i); });
  device.synchronize();
  CHECK_EQUAL(order.size(), size_t{200});
  for (int i = 0; i < static_cast<int>(order.size()); ++i) CHECK_EQUAL(order[static_cast<size_t>(i)], i);
}

TEST("device: an error surfaces at the next synchronisation and skips what lies between") {
  Device device(make_cpu_backend(1));
  int ran = 0;
  device.enqueue("fine", [&](Backend&) { ++ran; });
  device.enqueue("broken", [](Backend&) { throw Error("NON_FINITE", "a NaN"); });
  device.enqueue("skipped", [&](Backend&) { ++ran; });
  device.enqueue("broken too", [](Backend&) { throw Error("INTERNAL", "not reached"); });
  CHECK_THROWS_CODE(device.synchronize(), "NON_FINITE", "a NaN (in broken)");
  CHECK_EQUAL(ran, 1);
  device.enqueue("fine again", [&](Backend&) { ++ran; });
  device.synchronize();
  CHECK_EQUAL(ran, 2);

  device.enqueue("big", [](Backend&) { throw std::bad_alloc(); });
  CHECK_THROWS_CODE(device.synchronize(), "OUT_OF_MEMORY", "(in big)");
  device.enqueue("odd", [](Backend&) { throw std::runtime_error("odd thing"); });
  CHECK_THROWS_CODE(device.synchronize(), "INTERNAL", "odd thing (in odd)");
}

TEST("device: each of several synchronisations reports only its own stretch") {
  Device device(make_cpu_backend(1));
  std::promise<std::string> first, second;
  const auto report = [](std::promise<std::string>& to) {
    return [&to](const std::optional<Error>& failure) { to.set_value(failure ? failure->code() : "none"); };
  };
  device.enqueue("broken", [](Backend&) { throw Error("WRITE_FAILED", "full"); });
  device.synchronize(report(first));
  device.enqueue("fine", [](Backend&) {});
  device.synchronize(report(second));
  CHECK_EQUAL(first.get_future().get(), std::string("WRITE_FAILED"));
  CHECK_EQUAL(second.get_future().get(), std::string("none"));
}

TEST("device: the profile adds up each operation's seconds since the last one") {
  Device device(make_cpu_backend(1));
  const auto nap = [](Backend&) { std::this_thread::sleep_for(std::chrono::milliseconds(5)); };
  device.enqueue("before", nap);
  device.synchronize();
  CHECK(device.profile().empty());
  device.enqueue("twice", nap);
  device.enqueue("once", nap);
  device.enqueue("twice", nap);
  device.synchronize();
  const auto profile = device.profile();
  CHECK_EQUAL(profile.size(), size_t{2});
  CHECK(profile.at("once") >= 0.005);
  CHECK(profile.at("twice") >= 0.010);
  device.synchronize();
  CHECK(device.profile().empty());
}

TEST("device: stop drops what is queued, and a waiting synchronisation ends") {
  Device device(make_cpu_backend(1));
  std::promise<void> started, release;
  std::atomic<int> ran{0};
  device.enqueue("slow", [&](Backend&) {
    started.set_value();
    release.get_future().wait();
    ++ran;
  });
  started.get_future().wait();
  for (int i = 0; i < 10; ++i) device.enqueue("queued", [&](Backend&) { ran += 100; });
  device.synchronize([&](const std::optional<Error>&) { ran += 1000; });
  std::atomic<bool> waiting{false};
  auto waiter = std::async(std::launch::async, [&] {
    waiting = true;
    CHECK_THROWS_CODE(device.synchronize(), "DEVICE_UNAVAILABLE", "stopped");
  });
  while (!waiting) std::this_thread::yield();
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  auto stopper = std::async(std::launch::async, [&] { device.stop(); });
  // What is enqueued from then on is dropped at once.
  const auto is_stopping = [&] {
    const auto task = std::make_shared<int>();
    device.enqueue("queued", [task](Backend&) {});
    return task.use_count() == 1;
  };
  while (!is_stopping()) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  release.set_value();
  stopper.get();
  waiter.get();
  CHECK_EQUAL(ran.load(), 1);
  device.enqueue("late", [&](Backend&) { ++ran; });
  CHECK_THROWS_CODE(device.synchronize(), "DEVICE_UNAVAILABLE", "stopped");
  CHECK_EQUAL(ran.load(), 1);
  device.stop();
}

// --- mapped file ------------------------------------------------------------------------------------------------------

TEST("mapped file: content, release of pages, empty and missing files") {
  char path[] = "/tmp/sparsegpt-test-XXXXXX";
  const int fd = mkstemp(path);
  CHECK(fd >= 0);
  Random random(1);
  std::vector<uint8_t> content(3 * 4096 + 123);
  for (uint8_t& byte : content) byte = static_cast<uint8_t>(random.bits());
  CHECK_EQUAL(write(fd, content.data(), content.size()), static_cast<ssize_t>(content.size()));
  close(fd);

  auto file = MappedFile::open(path);
  CHECK_EQUAL(file->size(), content.size());
  CHECK_EQUAL(file->path(), std::string(path));
  CHECK(std::memcmp(file->data(), content.data(), content.size()) == 0);
  file->release_pages(100, content.size() - 100);
  CHECK(std::memcmp(file->data(), content.data(), content.size()) == 0);
  file.reset();

  CHECK_EQUAL(truncate(path, 0), 0);
  file = MappedFile::open(path);
  CHECK_EQUAL(file->size(), size_t{0});
  file->release_pages(0, 0);
  unlink(path);
  CHECK_THROWS_CODE(MappedFile::open(path), "FILE_NOT_FOUND", path);
  CHECK_THROWS_CODE(MappedFile::open("/tmp"), "FILE_NOT_FOUND", "not a regular file");
}

TEST("mapped file: pages behind the end of a file that has become shorter read as zeros and are told") {
  char path[] = "/tmp/sparsegpt-test-XXXXXX";
  const int fd = mkstemp(path);
  const std::vector<uint8_t> content(1 << 20, 7);
  CHECK_EQUAL(write(fd, content.data(), content.size()), static_cast<ssize_t>(content.size()));
  for (int round = 0; round < 3; ++round) {  // the place of a guard serves again
    CHECK_EQUAL(write(fd, content.data(), content.size()), static_cast<ssize_t>(content.size()));
    const auto file = MappedFile::open(path), other = MappedFile::open("/proc/self/exe");
    file->require_intact();
    CHECK_EQUAL(ftruncate(fd, 4096 + 100), 0);
    const auto* bytes = reinterpret_cast<const volatile uint8_t*>(file->data());
    ThreadPool pool(4);
    std::atomic<int64_t> sum{0};
    pool.parallel_for(256, [&](int64_t page, int) { sum += bytes[page * 4096] + bytes[page * 4096 + 50]; });
    CHECK_EQUAL(sum.load(), int64_t{4 * 7});
    CHECK_THROWS_CODE(file->require_intact(), "INVALID_CHECKPOINT", "became shorter");
    other->require_intact();
    file->release_pages(0, content.size());
    CHECK_EQUAL(int{bytes[content.size() - 1]}, 0);
    CHECK_EQUAL(lseek(fd, 0, SEEK_SET), off_t{0});
  }
  close(fd);
  unlink(path);
}

// --- spill file ---------------------------------------------------------------------------------------------------------

TEST("spill file: a storage comes back with its bytes; places are used again; failures are errors") {
  char folder[] = "/tmp/sparsegpt-test-XXXXXX";
  CHECK(mkdtemp(folder) != nullptr);
  const auto file = SpillFile::create(folder);
  CHECK_EQUAL(rmdir(folder), 0);  // the file has no name in it

  const auto backend = make_cpu_backend(1);
  for (int64_t count : {2, 1000, 5000000}) {  // below and above a huge page
    Tensor whole{backend->allocate(static_cast<size_t>(count) * 4), DType::f32, 1, count, count, 0};
    whole.storage->offload(file);  // never touched: there is nothing to move
    for (int64_t i = 0; i < count; ++i) whole.data<float>()[i] = static_cast<float>(i);
    for (int round = 0; round < 3; ++round) {
      whole.storage->offload(nullptr);
      whole.storage->offload(file);
      whole.storage->offload(file);  // it is away already
      const Tensor last = whole.column_range(count - 1, 1);
      CHECK_EQUAL(last.data<float>()[0], static_cast<float>(count - 1));
      whole.data<float>()[0] = static_cast<float>(round);
    }
    whole.storage->offload(file);
    CHECK_EQUAL(whole.data<float>()[0], 2.0f);
    whole.storage->offload(file);  // dies away
  }

  std::vector<std::byte> bytes(100);
  const int64_t first = file->write(bytes.data(), 100), second = file->write(bytes.data(), 100);
  CHECK(first != second);
  file->free(first, 100);
  CHECK_EQUAL(file->write(bytes.data(), 100), first);
  CHECK_THROWS_CODE(file->read(int64_t{1} << 40, bytes.data(), 100), "WRITE_FAILED", "shorter");
  CHECK_THROWS_CODE(SpillFile::create("/no/such/folder"), "WRITE_FAILED", "/no/such/folder");
}

// --- memory pool --------------------------------------------------------------------------------------------------------

constexpr size_t megabyte = size_t{1} << 20;

// Bytes of this process in memory; 0 on a system without /proc, and with sanitizers, whose own memory comes on top.
size_t resident() {
#if defined(SPARSEGPT_SANITIZED)
  return 0;
#endif
  unsigned long pages = 0, unused = 0;
  FILE* statm = std::fopen("/proc/self/statm", "r");
  const int fields = statm != nullptr ? std::fscanf(statm, "%lu %lu", &unused, &pages) : 0;
  if (statm != nullptr) std::fclose(statm);
  return fields == 2 ? pages * static_cast<size_t>(sysconf(_SC_PAGESIZE)) : 0;
}

std::shared_ptr<Storage> touched(Backend& backend, size_t bytes, int value = 1) {
  const auto storage = backend.allocate(bytes);
  std::memset(storage->data(), value, bytes);
  return storage;
}

TEST("memory pool: buffers keep their bytes while others are cut and joined; what is kept does not raise the peak") {
  const auto backend = make_cpu_backend(1);
  const size_t before = resident();
  struct Live {
    std::shared_ptr<Storage> storage;
    int value;
  };
  std::vector<Live> live;
  const auto kill = [&](size_t i) {
    const auto* bytes = live[i].storage->data();
    const size_t size = live[i].storage->size();
    CHECK(bytes[0] == std::byte(live[i].value));
    CHECK_EQUAL(std::memcmp(bytes, bytes + 1, size - 1), 0);
    live.erase(live.begin() + static_cast<std::ptrdiff_t>(i));
  };
  const auto whole = [](size_t bytes) { return (bytes + 2 * megabyte - 1) / (2 * megabyte) * (2 * megabyte); };
  std::mt19937 random(7);
  size_t used = 0, peak = 0;
  for (int step = 0; step < 400; ++step) {
    // A size in eight is below a huge page.
    const size_t bytes = random() % 8 == 0 ? 1 + random() % (2 * megabyte) : (2 + random() % 12) * megabyte - random() % 2;
    while (!live.empty() && (used + whole(bytes) > 64 * megabyte || random() % 3 == 0)) {
      const size_t i = random() % live.size();
      used -= whole(live[i].storage->size());
      kill(i);
    }
    live.push_back({touched(*backend, bytes, step % 251), step % 251});
    peak = std::max(peak, used += whole(bytes));
    if (before > 0) CHECK(resident() < before + peak + 16 * megabyte);
  }
  while (!live.empty()) kill(0);
}

TEST("memory pool: what is kept is bounded, and goes with the pool") {
  const size_t before = resident();
  if (before == 0) return;
  auto backend = make_cpu_backend(1);
  std::vector<std::shared_ptr<Storage>> live(5);
  for (auto& storage : live) storage = touched(*backend, 70 * megabyte);
  CHECK(resident() > before + 340 * megabyte);
  live.clear();
  CHECK(resident() < before + (256 + 16) * megabyte);
  CHECK(resident() > before + (256 - 16) * megabyte);
  backend.reset();
  CHECK(resident() < before + 16 * megabyte);
}

// Sanitizers have page faults of their own.
#if defined(__linux__) && !defined(SPARSEGPT_SANITIZED)
TEST("memory pool: memory serves again for other sizes, without faults") {
  const auto backend = make_cpu_backend(1);
  const auto faults = [] {
    rusage usage{};
    getrusage(RUSAGE_SELF, &usage);
    return usage.ru_minflt;
  };
  // As the blocks of a model: the attention's sizes, then the MLP's, while a buffer from before lies between them.
  const auto round = [&] {
    auto x = touched(*backend, 9 * megabyte), q = touched(*backend, 9 * megabyte), k = touched(*backend, 3 * megabyte);
    auto out = touched(*backend, 9 * megabyte);
    x.reset(), k.reset(), q.reset();
    auto gate = touched(*backend, 26 * megabyte);
  };
  const auto start = faults();
  round();
  const auto first = faults();
  for (int i = 0; i < 20; ++i) round();
  CHECK(first - start >= 17);  // huge pages, or many small ones
  CHECK(faults() - first < (first - start) / 2);
}
#endif

// --- tensors ----------------------------------------------------------------------------------------------------------

TEST("tensor: views share the storage and stay inside it") {
  const auto backend = make_cpu_backend(1);
  Tensor whole{backend->allocate(6 * 10 * 4), DType::f32, 6, 10, 10, 0};
  for (int i = 0; i < 60; ++i) whole.data<float>()[i] = static_cast<float>(i);
  CHECK(whole.contiguous());
  const Tensor view = whole.row_range(2, 3).column_range(4, 5);
  CHECK_EQUAL(view.rows, int64_t{3});
  CHECK_EQUAL(view.columns, int64_t{5});
  CHECK(!view.contiguous());
  CHECK(view.row_range(1, 1).contiguous());
  CHECK_EQUAL(view.data<float>()[0], 24.0f);
  CHECK_EQUAL(view.data<float>()[2 * view.stride + 4], 48.0f);
  CHECK_EQUAL(whole.row_range(6, 0).rows, int64_t{0});
  CHECK_THROWS_CODE(whole.row_range(4, 3), "INTERNAL", "float32 [6, 10]");
  CHECK_THROWS_CODE(whole.column_range(-1, 3), "INTERNAL", "column range");
  CHECK_EQUAL(whole.row_range(1, 4).reshaped(8, 5).row_range(3, 1).offset, whole.row_range(2, 1).column_range(5, 5).offset);
  CHECK_THROWS_CODE(whole.reshaped(6, 9), "INTERNAL", "float32 [6, 10] does not have the elements of [6, 9]");
  CHECK_THROWS_CODE(whole.column_range(0, 5).reshaped(5, 6), "INTERNAL", "one after another");
  CHECK_THROWS_CODE(whole.data<int32_t>(), "INTERNAL", "float32 [6, 10]");
  CHECK_EQUAL(describe(Tensor{}), std::string("no tensor"));
}
