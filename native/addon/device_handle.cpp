#include "addon/device_handle.h"

#include "addon/convert.h"

namespace sparsegpt::addon {

namespace {

// Rejects with a JavaScript Error as to_js() makes it. What Node refuses to do, as in an environment that is terminating, is not
// done; node-addon-api would throw.
void reject(napi_env env, napi_deferred deferred, const Error& failure) {
  napi_value code, message, error;
  const std::string text = failure.what();
  if (napi_create_string_utf8(env, failure.code().c_str(), failure.code().size(), &code) == napi_ok &&
      napi_create_string_utf8(env, text.c_str(), text.size(), &message) == napi_ok &&
      napi_create_error(env, code, message, &error) == napi_ok)
    napi_reject_deferred(env, deferred, error);
}

void resolve(napi_env env, napi_deferred deferred) {
  napi_value undefined;
  if (napi_get_undefined(env, &undefined) == napi_ok) napi_resolve_deferred(env, deferred, undefined);
}

}  // namespace

DeviceHandle::DeviceHandle(Napi::Env env, std::shared_ptr<Backend> backend) : env_(env) {
  const auto call = [](napi_env env, napi_value, void* context, void* data) {
    const std::unique_ptr<Ended> ended(static_cast<Ended*>(data));
    // Without an environment the handle may be gone too.
    if (env != nullptr) static_cast<DeviceHandle*>(context)->end(*ended);
  };
  if (napi_create_threadsafe_function(env, nullptr, nullptr, Napi::String::New(env, "sparsegpt device"), 0, 1, nullptr,
                                      nullptr, this, call, &to_js_) != napi_ok)
    throw Napi::Error::New(env, "cannot create a thread-safe function");
  napi_unref_threadsafe_function(env, to_js_);
  device_ = std::make_unique<Device>(std::move(backend));
  // Hooks run last-in first-out: the queue stops before Node finalizes the function that its thread calls.
  napi_add_env_cleanup_hook(env, stop_at_exit, this);
}

DeviceHandle::~DeviceHandle() {
  napi_remove_env_cleanup_hook(env_, stop_at_exit, this);
  stop();
}

void DeviceHandle::stop_at_exit(void* handle) { static_cast<DeviceHandle*>(handle)->stop(); }

DeviceHandle& DeviceHandle::from(const Napi::Value& value) {
  if (!value.IsExternal()) throw Napi::TypeError::New(value.Env(), "expected a device");
  return *value.As<Napi::External<DeviceHandle>>().Data();
}

void DeviceHandle::close() {
  stop();
  const Error failure("ABORTED", "the device was closed while it worked");
  while (!waits_.empty()) end({waits_.begin()->first, failure});
}

void DeviceHandle::stop() {
  if (to_js_ == nullptr) return;
  device_->stop();
  napi_release_threadsafe_function(to_js_, napi_tsfn_abort);
  to_js_ = nullptr;
}

uint64_t DeviceHandle::expect(Napi::Env env, Wait wait) {
  if (to_js_ == nullptr) throw to_js(env, Error("DEVICE_UNAVAILABLE", "the device has been closed"));
  if (waits_.empty()) napi_ref_threadsafe_function(env, to_js_);
  waits_.emplace(next_wait_, std::move(wait));
  return next_wait_++;
}

void DeviceHandle::tell(uint64_t wait, const std::optional<Error>& failure) {
  auto* ended = new Ended{wait, failure};
  if (napi_call_threadsafe_function(to_js_, ended, napi_tsfn_nonblocking) != napi_ok) delete ended;
}

void DeviceHandle::end(const Ended& ended) noexcept {
  const auto wait = waits_.extract(ended.wait);
  if (wait.empty()) return;
  if (waits_.empty() && to_js_ != nullptr) napi_unref_threadsafe_function(env_, to_js_);
  const napi_deferred deferred = wait.mapped().deferred;
  if (deferred == nullptr) return;
  if (ended.failure) {
    reject(env_, deferred, *ended.failure);
  } else {
    resolve(env_, deferred);
  }
}

Napi::Promise DeviceHandle::synchronize(Napi::Env env) {
  napi_value promise;
  Wait wait;
  if (napi_create_promise(env, &wait.deferred, &promise) != napi_ok) throw Napi::Error::New(env);
  const uint64_t number = expect(env, std::move(wait));
  device_->synchronize([this, number](const std::optional<Error>& failure) { tell(number, failure); });
  return {env, promise};
}

void DeviceHandle::enqueue_with(const Napi::Value& value, const char* operation, std::function<void(Backend&)> run) {
  const uint64_t number = expect(value.Env(), {nullptr, Napi::Persistent(value.As<Napi::Object>())});
  device_->enqueue(operation, std::move(run));
  device_->finally([this, number] { tell(number, std::nullopt); });
}

}  // namespace sparsegpt::addon
