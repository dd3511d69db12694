#include "weights/checkpoint.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <set>

#include "core/json.h"
#include "core/sha256.h"
#include "core/number_formats.h"

namespace margay {
namespace {

constexpr size_t kConfigLimit = size_t{16} << 20;
constexpr uint64_t kHeaderLimit = uint64_t{512} << 20;
constexpr size_t kHashChunk = size_t{4} << 20;

Status Broken(const std::string& sentence) { return Status(Code::kCheckpoint, sentence); }

struct FormatEntry {
  const char* name;
  DType dtype;
  unsigned bits;
};
constexpr FormatEntry kFormats[] = {
    {"F32", DType::kF32, 32},      {"BF16", DType::kBf16, 16},  {"F8_E4M3", DType::kFp8, 8}, {"F16", DType::kOther, 16},
    {"F64", DType::kOther, 64},    {"I64", DType::kOther, 64},  {"U64", DType::kOther, 64},  {"I32", DType::kOther, 32},
    {"U32", DType::kOther, 32},    {"I16", DType::kOther, 16},  {"U16", DType::kOther, 16},  {"I8", DType::kOther, 8},
    {"U8", DType::kOther, 8},      {"BOOL", DType::kOther, 8},  {"F8_E5M2", DType::kOther, 8}};

Result<Tensor> ParseTensor(const std::string& name, const Json& entry, const std::string& path) {
  const auto broken = [&](const char* what) { return Broken(path + ": the header entry of " + name + " " + what); };
  const Json* dtype = entry.Find("dtype");
  const Json* shape = entry.Find("shape");
  const Json* offsets = entry.Find("data_offsets");
  if (dtype == nullptr || shape == nullptr || offsets == nullptr) return broken("lacks dtype, shape or data_offsets");
  if (!dtype->is(Json::Kind::kString)) return broken("has a dtype that is no string");
  if (!shape->is(Json::Kind::kArray)) return broken("has a shape that is no list");
  Tensor tensor;
  tensor.name = name;
  tensor.dtype_name = dtype->text;
  const auto* format = std::find_if(std::begin(kFormats), std::end(kFormats), [&](auto& f) { return dtype->text == f.name; });
  if (format == std::end(kFormats)) return broken("has an unknown dtype");
  tensor.dtype = format->dtype;
  uint64_t elements = 1;
  for (const Json& side : shape->items) {
    if (!side.integral || side.integer < 0) return broken("has a side that is no size");
    tensor.shape.push_back(side.integer);
    if (__builtin_mul_overflow(elements, static_cast<uint64_t>(side.integer), &elements)) return broken("has an impossible shape");
  }
  const bool two = offsets->items.size() == 2 && offsets->items[0].integral && offsets->items[1].integral;
  if (!two || offsets->items[0].integer < 0 || offsets->items[1].integer < offsets->items[0].integer) {
    return broken("has impossible data_offsets");
  }
  tensor.offset = static_cast<uint64_t>(offsets->items[0].integer);
  tensor.bytes = static_cast<uint64_t>(offsets->items[1].integer) - tensor.offset;
  uint64_t bits = 0;
  if (__builtin_mul_overflow(elements, uint64_t{format->bits}, &bits) || tensor.bytes != bits / 8) {
    return broken("has data_offsets that do not fit its shape");
  }
  return tensor;
}

}  // namespace

Status Checkpoint::OpenFile(const std::string& name, size_t* index) {
  if (name.find('/') != std::string::npos) return Broken("the index names a file outside the folder: " + name);
  const std::string path = folder_ + "/" + name;
  if (!FileExists(path)) return Broken(path + " is missing");
  Result<File> file = File::Open(path);
  if (!file.ok()) return Broken(file.status().message());
  *index = files_.size();
  files_.push_back(std::move(file.value()));
  return Status::Ok();
}

Status Checkpoint::AddHeader(size_t file, const std::map<std::string, std::string, std::less<>>* placed) {
  const File& source = files_[file];
  const std::string file_name = source.path().substr(folder_.size() + 1);
  const Result<FileIdentity> identity = source.Identity();
  if (!identity.ok()) return identity.status();
  const uint64_t size = identity.value().size;
  uint64_t header_bytes = 0;
  if (size < 8 || !source.ReadAt(0, &header_bytes, 8).ok() || header_bytes > kHeaderLimit || header_bytes > size - 8) {
    return Broken(source.path() + " is truncated within its header, or no safetensors file");
  }
  std::string text(header_bytes, '\0');
  if (Status read = source.ReadAt(8, text.data(), text.size()); !read.ok()) return read;
  const Result<Json> header = ParseJson(text);
  if (!header.ok()) return Broken(source.path() + ": the header is broken: " + header.status().message());
  if (!header.value().is(Json::Kind::kObject)) return Broken(source.path() + ": the header is no JSON object");
  for (const auto& [name, entry] : header.value().members) {
    if (name == "__metadata__") continue;
    Result<Tensor> tensor = ParseTensor(name, entry, source.path());
    if (!tensor.ok()) return tensor.status();
    if (tensor->bytes > size - 8 - header_bytes || tensor->offset > size - 8 - header_bytes - tensor->bytes) {
      return Broken("tensor " + name + " is truncated: " + source.path() + " has only " + std::to_string(size) + " bytes");
    }
    tensor->offset += 8 + header_bytes;
    tensor->file = file;
    if (placed != nullptr) {
      const auto place = placed->find(name);
      if (place != placed->end() && place->second != file_name) continue;
    }
    if (!tensors_.emplace(name, std::move(tensor.value())).second) return Broken("tensor " + name + " is there twice");
  }
  return Status::Ok();
}

Result<Checkpoint> Checkpoint::Open(const std::string& folder) {
  Checkpoint checkpoint;
  checkpoint.folder_ = folder;
  if (!FileExists(folder + "/config.json")) return Broken(folder + "/config.json is missing");
  Result<std::string> config = ReadText(folder + "/config.json", kConfigLimit);
  if (!config.ok()) return Broken(config.status().message());
  checkpoint.config_ = std::move(config.value());
  if (FileExists(folder + "/generation_config.json")) {
    Result<std::string> text = ReadText(folder + "/generation_config.json", kConfigLimit);
    if (!text.ok()) return Broken(text.status().message());
    checkpoint.generation_config_ = std::move(text.value());
  }

  const std::string index_path = folder + "/model.safetensors.index.json";
  size_t file = 0;
  if (!FileExists(index_path)) {
    if (Status opened = checkpoint.OpenFile("model.safetensors", &file); !opened.ok()) return opened;
    if (Status added = checkpoint.AddHeader(file, nullptr); !added.ok()) return added;
    return checkpoint;
  }
  const Result<std::string> index_text = ReadText(index_path, kHeaderLimit);
  if (!index_text.ok()) return Broken(index_text.status().message());
  const Result<Json> index = ParseJson(index_text.value());
  if (!index.ok()) return Broken(index_path + ": " + index.status().message());
  const Json* map = index.value().Find("weight_map");
  if (map == nullptr || !map->is(Json::Kind::kObject)) return Broken(index_path + ": weight_map is missing");
  std::map<std::string, std::string, std::less<>> placed;
  std::set<std::string> names;
  for (const auto& [tensor, where] : map->members) {
    if (!where.is(Json::Kind::kString)) return Broken(index_path + ": the file of " + tensor + " is no string");
    placed[tensor] = where.text;
    names.insert(where.text);
  }
  for (const std::string& name : names) {
    if (Status opened = checkpoint.OpenFile(name, &file); !opened.ok()) return opened;
    if (Status added = checkpoint.AddHeader(file, &placed); !added.ok()) return added;
  }
  for (const auto& [tensor, where] : placed) {
    if (checkpoint.Find(tensor) == nullptr) return Broken("tensor " + tensor + " is missing in " + folder + "/" + where);
  }
  return checkpoint;
}

const Tensor* Checkpoint::Find(std::string_view name) const {
  const auto found = tensors_.find(name);
  return found == tensors_.end() ? nullptr : &found->second;
}

Status Checkpoint::Read(const Tensor& tensor, uint64_t first_byte, void* out, size_t bytes) const {
  return files_[tensor.file].ReadAt(tensor.offset + first_byte, out, bytes);
}

Status Checkpoint::ReadRows(const Tensor& tensor, const Tensor* scales, int64_t row, int64_t rows, float* out) const {
  const int64_t columns = tensor.shape.empty() ? 1 : tensor.shape.back();
  const auto count = static_cast<size_t>(rows * columns);
  const size_t width = tensor.dtype == DType::kF32 ? 4 : tensor.dtype == DType::kBf16 ? 2 : 1;
  // The raw values fill the end of the output, so that widening in order overwrites only what was read.
  auto* raw = reinterpret_cast<uint8_t*>(out) + count * (4 - width);
  if (Status read = Read(tensor, static_cast<uint64_t>(row * columns) * width, raw, count * width); !read.ok()) return read;
  if (tensor.dtype == DType::kBf16) {
    for (size_t i = 0; i < count; ++i) {
      uint16_t bits = 0;
      std::memcpy(&bits, raw + 2 * i, 2);
      out[i] = Bf16ToFloat(bits);
    }
  } else if (tensor.dtype == DType::kFp8) {
    const int64_t blocks = (columns + kFp8Block - 1) / kFp8Block;
    std::vector<float> scale(static_cast<size_t>(blocks));
    for (int64_t r = 0; r < rows; ++r) {
      if (r == 0 || (row + r) % kFp8Block == 0) {
        const auto first = static_cast<uint64_t>((row + r) / kFp8Block * blocks) * 4;
        if (Status read = Read(*scales, first, scale.data(), scale.size() * 4); !read.ok()) return read;
      }
      for (int64_t c = 0; c < columns; ++c) {
        const auto i = static_cast<size_t>(r * columns + c);
        out[i] = kFp8Values[raw[i]] * scale[static_cast<size_t>(c / kFp8Block)];
      }
    }
  }
  for (size_t i = 0; i < count; ++i) {
    if (!std::isfinite(out[i])) {
      return Broken("tensor " + tensor.name + " holds a value that is not finite, at element " +
                    std::to_string(static_cast<uint64_t>(row * columns) + i));
    }
  }
  return Status::Ok();
}

Result<std::string> Checkpoint::Hash(ThreadPool* pool) const {
  std::vector<const Tensor*> order;
  for (const auto& [name, tensor] : tensors_) order.push_back(&tensor);
  std::vector<Sha256::Digest> digests(order.size());
  std::vector<Status> results(order.size());
  pool->Run(static_cast<int>(order.size()), [&](int item, int) {
    const auto i = static_cast<size_t>(item);
    std::vector<uint8_t> chunk(std::min<uint64_t>(kHashChunk, order[i]->bytes));
    Sha256 sha;
    for (uint64_t at = 0; at < order[i]->bytes && results[i].ok(); at += chunk.size()) {
      const size_t bytes = std::min<uint64_t>(chunk.size(), order[i]->bytes - at);
      results[i] = Read(*order[i], at, chunk.data(), bytes);
      sha.Update(chunk.data(), bytes);
    }
    digests[i] = sha.Finish();
  });
  Sha256 sha;
  sha.Update("margay-model-1\n" + std::to_string(config_.size()) + "\n");
  sha.Update(config_);
  for (size_t i = 0; i < order.size(); ++i) {
    if (!results[i].ok()) return results[i];
    std::string line = order[i]->name + " " + order[i]->dtype_name;
    for (const int64_t side : order[i]->shape) line.append(1, ' ').append(std::to_string(side));
    sha.Update(line + " " + Hex(digests[i]) + "\n");
  }
  return Hex(sha.Finish());
}

Result<std::string> Checkpoint::Identity() const {
  Sha256 sha;
  sha.Update(config_);
  for (const File& file : files_) {
    const Result<FileIdentity> identity = file.Identity();
    if (!identity.ok()) return identity.status();
    const FileIdentity& facts = identity.value();
    sha.Update("\n" + file.path() + " " + std::to_string(facts.size) + " " + std::to_string(facts.inode) + " " +
               std::to_string(facts.device) + " " + std::to_string(facts.modified_ns) + " " +
               std::to_string(facts.changed_ns));
  }
  return Hex(sha.Finish());
}

}  // namespace margay
