// The operation table for JavaScript: an operation is its name and an object of its fields, both as in core/operations.h but in
// camel case.
#include <cctype>
#include <map>
#include <memory>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "addon/addon.h"
#include "addon/convert.h"
#include "addon/device_handle.h"
#include "core/operations.h"
#include "core/registry.h"

namespace sparsegpt::addon {

namespace {

// "out, head_dim" to "out", "headDim".
std::vector<std::string> camel_names(const char* list) {
  std::vector<std::string> names(1);
  bool word_ended = false;
  for (; *list != '\0'; ++list) {
    if (*list == ',') {
      names.emplace_back();
    } else if (*list == '_') {
      word_ended = true;
    } else if (*list != ' ') {
      names.back() += static_cast<char>(word_ended ? std::toupper(*list) : *list);
      word_ended = false;
    }
  }
  return names;
}

// What a name stands for.
class Entry {
 public:
  explicit Entry(std::string name) : name(std::move(name)) {}
  virtual ~Entry() = default;
  virtual void enqueue(DeviceHandle& device, const Napi::Object& fields) const = 0;
  // Enqueues it and adds it to a recording. `advance`: by how much fields grow, or tensors move, from a pass to the next.
  virtual void enqueue(DeviceHandle& device, const Napi::Object& fields, Recording& recording,
                       const Napi::Value& advance) const = 0;
  virtual size_t scratch_bytes(const ScratchModel& model, const Napi::Object& fields) const = 0;

  const std::string name;  // the queue keeps its address
};

template <typename Operation>
class EntryOf : public Entry {
 public:
  explicit EntryOf(std::string name) : Entry(std::move(name)), names_(camel_names(Operation::field_names)) {}

  void enqueue(DeviceHandle& device, const Napi::Object& fields) const override {
    device.device().enqueue(name.c_str(), [operation = read(fields)](Backend& backend) { backend.run(operation); });
  }

  void enqueue(DeviceHandle& device, const Napi::Object& fields, Recording& recording,
               const Napi::Value& advance) const override {
    const Operation operation = read(fields);
    const auto run = [operation](Backend& backend) { backend.run(operation); };
    if (advance.IsObject()) {
      std::vector<int64_t> steps;
      for (const std::string& field : names_) {
        const Napi::Value step = advance.As<Napi::Object>().Get(field);
        steps.push_back(step.IsUndefined() ? 0 : addon::read<int64_t>(step, name + ".advance." + field));
      }
      recording.push_back({name.c_str(), [operation, steps](Backend& backend, int64_t pass) {
                             backend.run(advanced(operation, steps, pass));
                           }});
    } else {
      recording.push_back({name.c_str(), [run](Backend& backend, int64_t) { run(backend); }});
    }
    device.device().enqueue(name.c_str(), run);
  }

  size_t scratch_bytes(const ScratchModel& model, const Napi::Object& fields) const override {
    const Operation operation = read(fields);
    operation.check();
    return model.bytes(operation);
  }

 private:
  Operation read(const Napi::Object& fields) const {
    Operation operation{};
    size_t next = 0;
    const auto read_field = [&](auto& field) {
      const std::string& field_name = names_[next++];
      field = addon::read<std::decay_t<decltype(field)>>(fields.Get(field_name), name + "." + field_name);
    };
    std::apply([&](auto&... field) { (read_field(field), ...); }, operation.fields());
    return operation;
  }

  static Operation advanced(Operation operation, const std::vector<int64_t>& steps, int64_t pass) {
    size_t next = 0;
    const auto move = [&](auto& field) {
      using Field = std::decay_t<decltype(field)>;
      const int64_t by = steps[next++] * pass;
      if constexpr (std::is_same_v<Field, Tensor>) {
        if (by != 0) field = field.moved(by);
      } else if constexpr (std::is_integral_v<Field> && !std::is_same_v<Field, bool>) {
        field += static_cast<Field>(by);
      } else if (by != 0) {
        throw Error("INTERNAL", "a field advances that is neither a tensor nor a whole number");
      }
    };
    std::apply([&](auto&... field) { (move(field), ...); }, operation.fields());
    return operation;
  }

  const std::vector<std::string> names_;
};

const Entry& entry(const Napi::Value& name) {
  static const auto entries = [] {
    std::map<std::string, std::unique_ptr<const Entry>> all;
    const auto add = [&](std::unique_ptr<const Entry> one) { all[one->name] = std::move(one); };
    const auto js_name = [](std::string text) {
      text[0] = static_cast<char>(std::tolower(text[0]));
      return text;
    };
#define SPARSEGPT_ENTRY(Operation) add(std::make_unique<EntryOf<Operation>>(js_name(#Operation)));
    SPARSEGPT_OPERATIONS(SPARSEGPT_ENTRY)
#undef SPARSEGPT_ENTRY
    return all;
  }();
  const auto found = entries.find(read<std::string>(name));
  if (found == entries.end()) throw Napi::TypeError::New(name.Env(), "unknown operation " + name.ToString().Utf8Value());
  return *found->second;
}

Napi::Object read_fields(const Napi::Value& value) {
  if (!value.IsObject()) throw expected(value, "", "an object with the operation's fields");
  return value.As<Napi::Object>();
}

using RecordingHandle = std::shared_ptr<Recording>;

RecordingHandle& recording_of(const Napi::Value& value) {
  if (!value.IsExternal()) throw expected(value, "", "a recording");
  return *value.As<Napi::External<RecordingHandle>>().Data();
}

// () => recording
Napi::Value create_recording(const Info& info) {
  return Napi::External<RecordingHandle>::New(info.Env(), new RecordingHandle(std::make_shared<Recording>()),
                                              [](Napi::Env, RecordingHandle* dead) { delete dead; });
}

// (device, operation, fields, { advance } | undefined, recording | undefined), enqueued
void run(const Info& info) {
  const Entry& operation = entry(info[1]);
  DeviceHandle& device = DeviceHandle::from(info[0]);
  if (!info[4].IsExternal()) return operation.enqueue(device, read_fields(info[2]));
  operation.enqueue(device, read_fields(info[2]), *recording_of(info[4]), read_fields(info[3]).Get("advance"));
}

// (device, recording, pass)
void replay(const Info& info) {
  DeviceHandle::from(info[0]).device().enqueue(recording_of(info[1]), read<int64_t>(info[2]));
}

// (kind, operation, fields) => bytes that the operation takes beyond its operands
Napi::Value scratch_bytes(const Info& info) {
  const ScratchModel& model = backend_kind(read<std::string>(info[0])).scratch();
  return Napi::Number::New(info.Env(), static_cast<double>(entry(info[1]).scratch_bytes(model, read_fields(info[2]))));
}

}  // namespace

void export_operations(Napi::Object exports) {
  export_function(exports, "run", run);
  export_function(exports, "createRecording", create_recording);
  export_function(exports, "replay", replay);
  export_function(exports, "scratchBytes", scratch_bytes);
}

}  // namespace sparsegpt::addon
