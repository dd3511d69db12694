#include "core/tls.h"

#include <dlfcn.h>
#include <poll.h>
#include <pthread.h>

#include <algorithm>
#include <array>
#include <climits>
#include <csignal>
#include <type_traits>

namespace margay {
namespace {

// Of OpenSSL 3's stable interface, which names its objects only by address.
struct OpenSsl {
  const void* (*TLS_method)();
  void* (*SSL_CTX_new)(const void* method);
  void (*SSL_CTX_free)(void* context);
  long (*SSL_CTX_ctrl)(void* context, int command, long number, void* pointer);
  void (*SSL_CTX_set_verify)(void* context, int mode, void* callback);
  int (*SSL_CTX_set_num_tickets)(void* context, size_t tickets);
  int (*SSL_CTX_load_verify_file)(void* context, const char* file);
  int (*SSL_CTX_use_certificate_chain_file)(void* context, const char* file);
  int (*SSL_CTX_use_PrivateKey_file)(void* context, const char* file, int type);
  int (*SSL_CTX_check_private_key)(const void* context);
  void* (*SSL_new)(void* context);
  void (*SSL_free)(void* session);
  int (*SSL_set_fd)(void* session, int fd);
  void (*SSL_set_connect_state)(void* session);
  void (*SSL_set_accept_state)(void* session);
  int (*SSL_read)(void* session, void* into, int bytes);
  int (*SSL_write)(void* session, const void* from, int bytes);
  int (*SSL_get_error)(const void* session, int result);
  void (*ERR_clear_error)();
  unsigned long (*ERR_get_error)();
  void (*ERR_error_string_n)(unsigned long code, char* into, size_t bytes);
};

// Values of openssl/ssl.h.
constexpr int kErrorWantRead = 2;
constexpr int kErrorWantWrite = 3;
constexpr int kVerifyBoth = 0x01 | 0x02;  // the peer's certificate, and a client that shows none fails
constexpr int kControlMode = 33;
constexpr long kModePartialWrites = 0x01 | 0x02;  // a write may go on from another address
constexpr int kControlLeastVersion = 123;
constexpr long kTls13 = 0x0304;
constexpr int kPem = 1;

// Null: neither this process nor the system has it.
const OpenSsl* Library() {
  static const OpenSsl* const library = []() -> const OpenSsl* {
    void* handle = RTLD_DEFAULT;
    if (dlsym(handle, "SSL_CTX_new") == nullptr) {
      handle = dlopen("libssl.so.3", RTLD_NOW | RTLD_LOCAL);
      if (handle == nullptr) return nullptr;
    }
    static OpenSsl found;
    bool whole = true;
    const auto find = [&](auto* function, const char* name) {
      void* at = dlsym(handle, name);
      whole = whole && at != nullptr;
      *function = reinterpret_cast<std::remove_reference_t<decltype(*function)>>(at);
    };
#define MARGAY_FIND(name) find(&found.name, #name)
    MARGAY_FIND(TLS_method);
    MARGAY_FIND(SSL_CTX_new);
    MARGAY_FIND(SSL_CTX_free);
    MARGAY_FIND(SSL_CTX_ctrl);
    MARGAY_FIND(SSL_CTX_set_verify);
    MARGAY_FIND(SSL_CTX_set_num_tickets);
    MARGAY_FIND(SSL_CTX_load_verify_file);
    MARGAY_FIND(SSL_CTX_use_certificate_chain_file);
    MARGAY_FIND(SSL_CTX_use_PrivateKey_file);
    MARGAY_FIND(SSL_CTX_check_private_key);
    MARGAY_FIND(SSL_new);
    MARGAY_FIND(SSL_free);
    MARGAY_FIND(SSL_set_fd);
    MARGAY_FIND(SSL_set_connect_state);
    MARGAY_FIND(SSL_set_accept_state);
    MARGAY_FIND(SSL_read);
    MARGAY_FIND(SSL_write);
    MARGAY_FIND(SSL_get_error);
    MARGAY_FIND(ERR_clear_error);
    MARGAY_FIND(ERR_get_error);
    MARGAY_FIND(ERR_error_string_n);
#undef MARGAY_FIND
    return whole ? &found : nullptr;
  }();
  return library;
}

Status TlsError(const OpenSsl& library, const std::string& what) {
  std::array<char, 256> text{};
  library.ERR_error_string_n(library.ERR_get_error(), text.data(), text.size());
  library.ERR_clear_error();
  return {Code::kBadArgument, what + ": " + text.data()};
}

// A context of the library, to be freed by the caller.
Result<void*> OpenContext(const TlsFiles& files) {
  const OpenSsl* library = Library();
  if (library == nullptr) {
    return Status(Code::kBadArgument,
                  "TLS for KV needs OpenSSL 3, which this Node does not show and this machine does not have");
  }
  library->ERR_clear_error();
  void* context = library->SSL_CTX_new(library->TLS_method());
  if (context == nullptr) return TlsError(*library, "TLS for KV cannot begin");
  std::string wrong;
  if (library->SSL_CTX_use_certificate_chain_file(context, files.certificate.c_str()) != 1) {
    wrong = "the certificate for KV, " + files.certificate + ", cannot be used";
  } else if (library->SSL_CTX_use_PrivateKey_file(context, files.key.c_str(), kPem) != 1 ||
             library->SSL_CTX_check_private_key(context) != 1) {
    wrong = "the key for KV, " + files.key + ", cannot be used with that certificate";
  } else if (library->SSL_CTX_load_verify_file(context, files.authority.c_str()) != 1) {
    wrong = "the authority for KV, " + files.authority + ", cannot be used";
  }
  if (!wrong.empty()) {
    Status status = TlsError(*library, wrong);
    library->SSL_CTX_free(context);
    return status;
  }
  library->SSL_CTX_ctrl(context, kControlLeastVersion, kTls13, nullptr);
  library->SSL_CTX_ctrl(context, kControlMode, kModePartialWrites, nullptr);
  library->SSL_CTX_set_num_tickets(context, 0);  // connections last, and none is resumed
  library->SSL_CTX_set_verify(context, kVerifyBoth, nullptr);
  return context;
}

int Most(size_t bytes) { return static_cast<int>(std::min<size_t>(bytes, INT_MAX)); }

}  // namespace

Status CheckTls(const TlsFiles& files) {
  Result<void*> context = OpenContext(files);
  if (context.ok()) Library()->SSL_CTX_free(*context);
  return context.status();
}

void BlockBrokenPipeSignal() {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGPIPE);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
}

Result<std::unique_ptr<TlsSession>> TlsSession::Open(const Fd& fd, const TlsFiles& files, TlsSide side) {
  Result<void*> context = OpenContext(files);
  if (!context.ok()) return context.status();
  const OpenSsl& library = *Library();
  void* session = library.SSL_new(*context);
  if (session == nullptr || library.SSL_set_fd(session, fd.get()) != 1) {
    Status status = TlsError(library, "TLS for KV cannot begin");
    if (session != nullptr) library.SSL_free(session);
    library.SSL_CTX_free(*context);
    return status;
  }
  if (side == TlsSide::kConnects) {
    library.SSL_set_connect_state(session);
  } else {
    library.SSL_set_accept_state(session);
  }
  return std::unique_ptr<TlsSession>(new TlsSession(*context, session));
}

TlsSession::~TlsSession() {
  Library()->SSL_free(session_);
  Library()->SSL_CTX_free(context_);
}

ssize_t TlsSession::Moved(int result, short* waits_for) {
  *waits_for = 0;
  if (result > 0) return result;
  const int error = Library()->SSL_get_error(session_, result);
  Library()->ERR_clear_error();
  if (error != kErrorWantRead && error != kErrorWantWrite) return -1;
  *waits_for = error == kErrorWantRead ? POLLIN : POLLOUT;
  return 0;
}

ssize_t TlsSession::Send(std::span<const std::byte> first, std::span<const std::byte> second) {
  ssize_t sent = 0;
  for (std::span<const std::byte> piece : {first, second}) {
    while (!piece.empty()) {
      const int result = Library()->SSL_write(session_, piece.data(), Most(piece.size()));
      const ssize_t moved = Moved(result, &sending_waits_for_);
      if (moved <= 0) return sent > 0 ? sent : moved;
      sent += moved;
      piece = piece.subspan(static_cast<size_t>(moved));
    }
  }
  return sent;
}

ssize_t TlsSession::Receive(std::span<std::byte> first, std::span<std::byte> second) {
  ssize_t got = 0;
  for (std::span<std::byte> piece : {first, second}) {
    while (!piece.empty()) {
      const int result = Library()->SSL_read(session_, piece.data(), Most(piece.size()));
      const ssize_t moved = Moved(result, &receiving_waits_for_);
      if (moved <= 0) return got > 0 ? got : moved;
      got += moved;
      piece = piece.subspan(static_cast<size_t>(moved));
    }
  }
  return got;
}

short TlsSession::Events(bool to_receive, bool to_send) const {
  const bool in = to_receive || (to_send && sending_waits_for_ == POLLIN);
  const bool out = (to_send && sending_waits_for_ != POLLIN) || (to_receive && receiving_waits_for_ == POLLOUT);
  return static_cast<short>((in ? POLLIN : 0) | (out ? POLLOUT : 0));
}

Result<Channel> Channel::Secure(Fd fd, const TlsFiles& files, TlsSide side) {
  Result<std::unique_ptr<TlsSession>> tls = TlsSession::Open(fd, files, side);
  if (!tls.ok()) return tls.status();
  Channel channel(std::move(fd));
  channel.tls_ = std::move(*tls);
  return channel;
}

short Channel::Events(bool to_receive, bool to_send) const {
  if (tls_ != nullptr) return tls_->Events(to_receive, to_send);
  return static_cast<short>((to_receive ? POLLIN : 0) | (to_send ? POLLOUT : 0));
}

ssize_t Channel::Send(std::span<const std::byte> first, std::span<const std::byte> second) {
  return tls_ == nullptr ? margay::Send(fd_, first, second) : tls_->Send(first, second);
}

ssize_t Channel::Receive(std::span<std::byte> first, std::span<std::byte> second) {
  return tls_ == nullptr ? margay::Receive(fd_, first, second) : tls_->Receive(first, second);
}

}  // namespace margay
