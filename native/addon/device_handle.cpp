#include "addon/device_handle.h"

#include "addon/convert.h"

namespace sparsegpt::addon {

namespace {

void close_at_exit(void* handle) { static_cast<DeviceHandle*>(handle)->close(); }

}  // namespace

DeviceHandle::DeviceHandle(Napi::Env env, std::shared_ptr<Backend> backend) : env_(env) {
  const auto call = [](napi_env env, napi_value, void* context, void* data) {
    const std::unique_ptr<Completion> completion(static_cast<Completion*>(data));
    if (env == nullptr) return;  // the environment is going away
    Napi::HandleScope scope(env);
    auto* handle = static_cast<DeviceHandle*>(context);
    if (--handle->expected_ == 0) napi_unref_threadsafe_function(env, handle->to_js_);
    (*completion)(Napi::Env(env));
  };
  if (napi_create_threadsafe_function(env, nullptr, nullptr, Napi::String::New(env, "sparsegpt device"), 0, 1, nullptr,
                                      nullptr, this, call, &to_js_) != napi_ok)
    throw Napi::Error::New(env, "cannot create a thread-safe function");
  napi_unref_threadsafe_function(env, to_js_);
  device_ = std::make_unique<Device>(std::move(backend));
  // Hooks run last-in first-out: the queue stops before Node finalizes the function that its thread calls.
  napi_add_env_cleanup_hook(env, close_at_exit, this);
}

DeviceHandle::~DeviceHandle() {
  napi_remove_env_cleanup_hook(env_, close_at_exit, this);
  close();
}

DeviceHandle& DeviceHandle::from(const Napi::Value& value) {
  if (!value.IsExternal()) throw Napi::TypeError::New(value.Env(), "expected a device");
  return *value.As<Napi::External<DeviceHandle>>().Data();
}

void DeviceHandle::close() {
  if (to_js_ == nullptr) return;
  device_->stop();
  napi_release_threadsafe_function(to_js_, napi_tsfn_abort);
  to_js_ = nullptr;
}

void DeviceHandle::expect(Napi::Env env) {
  if (to_js_ == nullptr) throw to_js(env, Error("DEVICE_UNAVAILABLE", "the device has been closed"));
  if (expected_++ == 0) napi_ref_threadsafe_function(env, to_js_);
}

void DeviceHandle::complete(Completion completion) {
  auto* data = new Completion(std::move(completion));
  if (napi_call_threadsafe_function(to_js_, data, napi_tsfn_nonblocking) != napi_ok) delete data;
}

Napi::Promise DeviceHandle::synchronize(Napi::Env env) {
  expect(env);
  const auto deferred = Napi::Promise::Deferred::New(env);
  device_->synchronize([this, deferred](const std::optional<Error>& failure) {
    complete([deferred, failure](Napi::Env env) {
      if (failure) {
        deferred.Reject(to_js(env, *failure).Value());
      } else {
        deferred.Resolve(env.Undefined());
      }
    });
  });
  return deferred.Promise();
}

void DeviceHandle::enqueue_with(const Napi::Value& value, const char* operation, std::function<void(Backend&)> run) {
  expect(value.Env());
  // A reference may only be dropped on the JavaScript thread.
  auto* alive = new Napi::ObjectReference(Napi::Persistent(value.As<Napi::Object>()));
  device_->enqueue(operation, std::move(run));
  device_->finally([this, alive] { complete([alive](Napi::Env) { delete alive; }); });
}

}  // namespace sparsegpt::addon
