#include "core/json.h"

#include <charconv>
#include <unordered_set>

namespace margay {
namespace {

constexpr int kMaxDepth = 64;
constexpr int kMaxValues = 4'000'000;  // a value of two bytes of text takes a hundred of memory

class Parser {
 public:
  explicit Parser(std::string_view text) : text_(text) {}

  Result<Json> Parse() {
    Json value;
    if (!Value(&value, 0)) return Failed();
    Blank();
    if (at_ != text_.size()) {
      Fail("text after the value");
      return Failed();
    }
    return value;
  }

 private:
  Status Failed() const { return Status(Code::kBadArgument, error_ + " at byte " + std::to_string(at_)); }

  bool Fail(const char* what) {
    if (error_.empty()) error_ = what;
    return false;
  }

  void Blank() {
    while (at_ < text_.size() && (text_[at_] == ' ' || text_[at_] == '\n' || text_[at_] == '\t' || text_[at_] == '\r')) ++at_;
  }

  bool Take(char c) {
    if (at_ >= text_.size() || text_[at_] != c) return false;
    ++at_;
    return true;
  }

  bool Word(std::string_view word) {
    if (text_.substr(at_, word.size()) != word) return Fail("an unknown word");
    at_ += word.size();
    return true;
  }

  bool Value(Json* out, int depth) {
    if (depth > kMaxDepth) return Fail("too many levels");
    if (++values_ > kMaxValues) return Fail("too many values");
    Blank();
    if (at_ >= text_.size()) return Fail("the text ends too early");
    switch (text_[at_]) {
      case '{': return Object(out, depth);
      case '[': return Array(out, depth);
      case '"': out->kind = Json::Kind::kString; return String(&out->text);
      case 't': out->kind = Json::Kind::kBool; out->boolean = true; return Word("true");
      case 'f': out->kind = Json::Kind::kBool; return Word("false");
      case 'n': return Word("null");
      default: return Number(out);
    }
  }

  bool Object(Json* out, int depth) {
    out->kind = Json::Kind::kObject;
    ++at_;
    Blank();
    if (Take('}')) return true;
    std::unordered_set<std::string> seen;
    do {
      Blank();
      std::string key;
      if (at_ >= text_.size() || text_[at_] != '"') return Fail("a key is expected");
      if (!String(&key)) return false;
      if (!seen.insert(key).second) return Fail("a duplicate key");
      Blank();
      if (!Take(':')) return Fail("':' is expected");
      out->members.emplace_back(std::move(key), Json{});
      if (!Value(&out->members.back().second, depth + 1)) return false;
      Blank();
    } while (Take(','));
    return Take('}') || Fail("',' or '}' is expected");
  }

  bool Array(Json* out, int depth) {
    out->kind = Json::Kind::kArray;
    ++at_;
    Blank();
    if (Take(']')) return true;
    do {
      out->items.emplace_back();
      if (!Value(&out->items.back(), depth + 1)) return false;
      Blank();
    } while (Take(','));
    return Take(']') || Fail("',' or ']' is expected");
  }

  bool Hex4(uint32_t* out) {
    if (text_.size() - at_ < 4) return Fail("a cut escape");
    uint32_t value = 0;
    const auto parsed = std::from_chars(text_.data() + at_, text_.data() + at_ + 4, value, 16);
    if (parsed.ptr != text_.data() + at_ + 4) return Fail("a bad escape");
    at_ += 4;
    *out = value;
    return true;
  }

  static void AppendUtf8(uint32_t c, std::string* out) {
    if (c < 0x80) {
      *out += static_cast<char>(c);
    } else if (c < 0x800) {
      *out += static_cast<char>(0xc0 | c >> 6);
      *out += static_cast<char>(0x80 | (c & 0x3f));
    } else if (c < 0x10000) {
      *out += static_cast<char>(0xe0 | c >> 12);
      *out += static_cast<char>(0x80 | (c >> 6 & 0x3f));
      *out += static_cast<char>(0x80 | (c & 0x3f));
    } else {
      *out += static_cast<char>(0xf0 | c >> 18);
      *out += static_cast<char>(0x80 | (c >> 12 & 0x3f));
      *out += static_cast<char>(0x80 | (c >> 6 & 0x3f));
      *out += static_cast<char>(0x80 | (c & 0x3f));
    }
  }

  bool Escape(std::string* out) {
    if (at_ >= text_.size()) return Fail("the text ends inside a string");
    const char c = text_[at_++];
    switch (c) {
      case '"': case '\\': case '/': *out += c; return true;
      case 'b': *out += '\b'; return true;
      case 'f': *out += '\f'; return true;
      case 'n': *out += '\n'; return true;
      case 'r': *out += '\r'; return true;
      case 't': *out += '\t'; return true;
      case 'u': break;
      default: return Fail("a bad escape");
    }
    uint32_t code = 0;
    if (!Hex4(&code)) return false;
    if (code >= 0xd800 && code < 0xdc00) {
      uint32_t low = 0;
      if (!Take('\\') || !Take('u') || !Hex4(&low) || low < 0xdc00 || low > 0xdfff) return Fail("half a surrogate pair");
      code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
    } else if (code >= 0xdc00 && code < 0xe000) {
      return Fail("half a surrogate pair");
    }
    AppendUtf8(code, out);
    return true;
  }

  bool String(std::string* out) {
    ++at_;
    while (at_ < text_.size()) {
      const char c = text_[at_++];
      if (c == '"') return true;
      if (static_cast<unsigned char>(c) < 0x20) return Fail("a control character in a string");
      if (c != '\\') {
        *out += c;
      } else if (!Escape(out)) {
        return false;
      }
    }
    return Fail("the text ends inside a string");
  }

  bool Digits() {
    const size_t first = at_;
    while (at_ < text_.size() && text_[at_] >= '0' && text_[at_] <= '9') ++at_;
    return at_ > first || Fail("a digit is expected");
  }

  bool Number(Json* out) {
    out->kind = Json::Kind::kNumber;
    const size_t first = at_;
    Take('-');
    const bool zero = at_ < text_.size() && text_[at_] == '0';
    const size_t digits = at_;
    if (!Digits()) return false;
    if (zero && at_ - digits > 1) return Fail("a number with a leading zero");
    bool whole = true;
    if (Take('.')) {
      whole = false;
      if (!Digits()) return false;
    }
    if (Take('e') || Take('E')) {
      whole = false;
      if (!Take('+')) Take('-');
      if (!Digits()) return false;
    }
    const char* begin = text_.data() + first;
    const char* end = text_.data() + at_;
    if (std::from_chars(begin, end, out->number).ec != std::errc{}) return Fail("a number out of range");
    out->integral = whole && std::from_chars(begin, end, out->integer).ec == std::errc{};
    return true;
  }

  std::string_view text_;
  size_t at_ = 0;
  int values_ = 0;
  std::string error_;
};

}  // namespace

const Json* Json::Find(std::string_view key) const {
  for (const auto& [name, value] : members) {
    if (name == key) return &value;
  }
  return nullptr;
}

Result<Json> ParseJson(std::string_view text) { return Parser(text).Parse(); }

}  // namespace margay
