#include "model/safetensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <limits>

#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "tests/testing/temp_folder.h"

namespace vitrine {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::string FileOf(const std::string& header, const std::string& data) {
  std::string out(8, '\0');
  for (int i = 0; i < 8; ++i) {
    out[i] = static_cast<char>(uint64_t{header.size()} >> 8 * i & 0xff);
  }
  return out + header + data;
}

class SafetensorsTest : public ::testing::Test {
 protected:
  std::string Path(const std::string& name = "model.safetensors") {
    return JoinPath(folder_.path(), name);
  }
  // What opening a file with this header and these bytes says.
  absl::Status Open(const std::string& header, const std::string& data) {
    return OpenBytes(FileOf(header, data));
  }
  absl::Status OpenBytes(const std::string& bytes) {
    // Without fsync: thousands of these.
    std::ofstream(Path(), std::ios::binary) << bytes;
    const absl::Status status = OpenSafetensors(Path()).status();
    if (!status.ok()) {
      EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
      EXPECT_THAT(std::string(status.message()), HasSubstr(Path()));
    }
    return status;
  }
  void ExpectError(const std::string& header, const std::string& data,
                   const std::string& message) {
    const absl::Status status = Open(header, data);
    EXPECT_THAT(status.ToString(), HasSubstr(message)) << header;
  }

  TempFolder folder_;
};

TEST_F(SafetensorsTest, ReadsBackWhatItWrote) {
  const std::vector<NamedTensor> tensors = {
      {"b.weight", TensorType::kF32, {2, 3}, {1, -2, 3.25f, 1e-30f, 5e20f, 0}},
      {"a", TensorType::kF16, {2}, {1.5f, -0.25f}},
      {"scalar", TensorType::kBF16, {}, {-3}},
      {"empty", TensorType::kF32, {0, 7}, {}}};
  ASSERT_TRUE(WriteSafetensors(Path(), tensors).ok());
  absl::StatusOr<std::unique_ptr<Safetensors>> file = OpenSafetensors(Path());
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ((*file)->tensors().size(), 4);
  for (const NamedTensor& tensor : tensors) {
    const TensorView* view = (*file)->Find(tensor.name);
    ASSERT_NE(view, nullptr) << tensor.name;
    EXPECT_EQ(view->type, tensor.type);
    EXPECT_EQ(view->shape, tensor.shape);
    absl::StatusOr<std::vector<float>> values = ToFloats(*view);
    ASSERT_TRUE(values.ok()) << values.status();
    EXPECT_EQ(*values, tensor.values) << tensor.name;
  }
  EXPECT_EQ((*file)->Find("c"), nullptr);
}

TEST_F(SafetensorsTest, AlignsTheDataForReadersThatMapIt) {
  for (const char* name : {"a", "ab", "abc", "abcdefgh"}) {
    ASSERT_TRUE(
        WriteSafetensors(Path(), {{name, TensorType::kF32, {1}, {7}}}).ok());
    EXPECT_EQ(ReadFile(Path())->size() % 8, 4) << name;
  }
}

TEST_F(SafetensorsTest, ConvertsEveryHalfExactly) {
  std::string data;
  for (int bits = 0; bits < 65536; ++bits) {
    data.push_back(static_cast<char>(bits & 0xff));
    data.push_back(static_cast<char>(bits >> 8));
  }
  for (const char* dtype : {"F16", "BF16"}) {
    ASSERT_TRUE(Open(absl::StrCat(R"({"t":{"dtype":")", dtype,
                                  R"(","shape":[65536],)"
                                  R"("data_offsets":[0,131072]}})"),
                     data)
                    .ok());
    absl::StatusOr<std::unique_ptr<Safetensors>> file = OpenSafetensors(Path());
    ASSERT_TRUE(file.ok());
    absl::StatusOr<std::vector<float>> values = ToFloats(*(*file)->Find("t"));
    ASSERT_TRUE(values.ok());
    const bool half = std::string(dtype) == "F16";
    const int exponent_bits = half ? 5 : 8;
    const int mantissa_bits = 15 - exponent_bits;
    for (int bits = 0; bits < 65536; ++bits) {
      const int exponent = bits >> mantissa_bits & ((1 << exponent_bits) - 1);
      const int mantissa = bits & ((1 << mantissa_bits) - 1);
      const double sign = bits >> 15 ? -1 : 1;
      const int bias = (1 << (exponent_bits - 1)) - 1;
      const float value = (*values)[bits];
      if (exponent == (1 << exponent_bits) - 1) {
        EXPECT_EQ(std::isnan(value), mantissa != 0) << bits;
        if (mantissa == 0) {
          EXPECT_EQ(value, sign * INFINITY);
        }
        continue;
      }
      const double fraction = std::ldexp(mantissa, -mantissa_bits);
      const double expected =
          exponent == 0 ? sign * std::ldexp(fraction, 1 - bias)
                        : sign * std::ldexp(1 + fraction, exponent - bias);
      ASSERT_EQ(value, expected) << dtype << " " << bits;
    }
    // And back: every value that the type can hold survives writing.
    const TensorType type = half ? TensorType::kF16 : TensorType::kBF16;
    const std::string copy = Path("copy.safetensors");
    ASSERT_TRUE(WriteSafetensors(copy, {{"t", type, {65536}, *values}}).ok());
    file = OpenSafetensors(copy);
    ASSERT_TRUE(file.ok());
    absl::StatusOr<std::vector<float>> again = ToFloats(*(*file)->Find("t"));
    for (int bits = 0; bits < 65536; ++bits) {
      if (std::isnan((*values)[bits])) {
        EXPECT_TRUE(std::isnan((*again)[bits]));
      } else {
        ASSERT_EQ((*again)[bits], (*values)[bits]) << dtype << " " << bits;
      }
    }
  }
}

TEST_F(SafetensorsTest, RoundsHalvesToNearestTiesToEven) {
  const auto stored = [this](TensorType type, float value) {
    EXPECT_TRUE(WriteSafetensors(Path(), {{"t", type, {1}, {value}}}).ok());
    absl::StatusOr<std::unique_ptr<Safetensors>> file = OpenSafetensors(Path());
    EXPECT_TRUE(file.ok());
    return (*ToFloats(*(*file)->Find("t")))[0];
  };
  const TensorType half = TensorType::kF16;
  EXPECT_EQ(stored(half, 1 + 0x1p-11f), 1);                // tie, to even
  EXPECT_EQ(stored(half, 1 + 3 * 0x1p-11f), 1 + 0x1p-9f);  // tie, to even
  EXPECT_EQ(stored(half, 1 + 0x1.8p-11f), 1 + 0x1p-10f);
  EXPECT_EQ(stored(half, 65519), 65504);
  EXPECT_EQ(stored(half, 65520), INFINITY);
  EXPECT_EQ(stored(half, -1e9f), -INFINITY);
  EXPECT_EQ(stored(half, 0x1p-25f), 0);  // half the smallest: to even
  EXPECT_EQ(stored(half, 0x1.1p-25f), 0x1p-24f);
  EXPECT_EQ(stored(half, 0x1.ffep-15f), 0x1p-14f);  // up into the normal ones
  const TensorType brain = TensorType::kBF16;
  EXPECT_EQ(stored(brain, 1 + 0x1p-8f), 1);
  EXPECT_EQ(stored(brain, 1 + 3 * 0x1p-8f), 1 + 0x1p-6f);
  EXPECT_EQ(stored(brain, std::numeric_limits<float>::max()), INFINITY);
  EXPECT_TRUE(std::isnan(stored(brain, std::nanf(""))));
  EXPECT_TRUE(std::isnan(stored(half, std::nanf(""))));
}

TEST_F(SafetensorsTest, AcceptsWhatOthersWrite) {
  EXPECT_TRUE(Open("{}", "").ok());
  EXPECT_TRUE(Open(R"({"__metadata__":{"format":"pt"}}   )", "").ok());
  // Any order, unaligned, other dtypes beside.
  EXPECT_TRUE(Open(R"({"b":{"dtype":"F32","shape":[1],"data_offsets":[1,5]},)"
                   R"("a":{"dtype":"BOOL","shape":[1],"data_offsets":[0,1]}})",
                   "x0123")
                  .ok());
  absl::StatusOr<std::unique_ptr<Safetensors>> file = OpenSafetensors(Path());
  ASSERT_TRUE(file.ok());
  EXPECT_EQ((*file)->Find("a")->type, TensorType::kOther);
  EXPECT_FALSE(ToFloats(*(*file)->Find("a")).ok());
  EXPECT_EQ((*file)->Find("b")->bytes, "0123");
}

TEST_F(SafetensorsTest, NamesTheTensorThatIsWrong) {
  const auto tensor = [](const std::string& dtype, const std::string& shape,
                         const std::string& offsets) {
    return absl::StrCat(R"({"x.weight":{"dtype":")", dtype, R"(","shape":)",
                        shape, R"(,"data_offsets":)", offsets, "}}");
  };
  const std::string four = "0123";
  ASSERT_TRUE(Open(tensor("F32", "[1]", "[0,4]"), four).ok());
  ExpectError(tensor("F32", "[2]", "[0,4]"), four,
              "x.weight: its shape needs 8 bytes, it has 4");
  ExpectError(tensor("F32", "[2]", "[0,8]"), four,
              "x.weight: bytes 0 to 8 are not within the file's 4 bytes");
  ExpectError(tensor("F32", "[1]", "[4,0]"), four, "x.weight: bytes 4 to 0");
  ExpectError(tensor("F32", "[1]", "[-4,0]"), four, "x.weight: its data_off");
  ExpectError(tensor("F32", "[1]", "[0,4.0]"), four, "x.weight: its data_off");
  ExpectError(tensor("F32", "[1]", "[0]"), four, "x.weight: its data_offsets");
  ExpectError(tensor("F32", "[1]", "[0,18446744073709551615]"), four,
              "x.weight: bytes 0 to 18446744073709551615");
  ExpectError(tensor("F32", "[-1]", "[0,4]"), four, "x.weight: size 0 of");
  ExpectError(tensor("F32", "[1,1.5]", "[0,4]"), four, "x.weight: size 1 of");
  ExpectError(tensor("F32", "[1099511627776,1099511627776]", "[0,4]"), four,
              "x.weight: its shape is too large");
  ExpectError(tensor("F32", "[4294967296,4294967296]", "[0,4]"), four,
              "x.weight: its shape is too large");
  ExpectError(tensor("F32", "[1,1,1,1,1,1,1,1,1]", "[0,4]"), four,
              "x.weight: its shape is not");
  ExpectError(tensor("F32", "{}", "[0,4]"), four, "x.weight: its shape is not");
  ExpectError(tensor("F33", "[1]", "[0,4]"), four,
              "x.weight: unknown dtype F33");
  ExpectError(R"({"x.weight":{"shape":[1],"data_offsets":[0,4]}})", four,
              "x.weight: no dtype");
  ExpectError(R"({"x.weight":[1]})", four, "x.weight: its header entry");
}

TEST_F(SafetensorsTest, RefusesOverlapsHolesAndRepeatedNames) {
  const auto two = [](const std::string& first, const std::string& second) {
    return absl::StrCat(
        R"({"a":{"dtype":"F32","shape":[1],"data_offsets":)", first,
        R"(},"b":{"dtype":"F32","shape":[1],"data_offsets":)", second, "}}");
  };
  ASSERT_TRUE(Open(two("[0,4]", "[4,8]"), "01234567").ok());
  ExpectError(two("[0,4]", "[0,4]"), "0123", "b begins at byte 0, within");
  ExpectError(two("[0,4]", "[2,6]"), "012345", "b begins at byte 2, within");
  ExpectError(two("[0,4]", "[5,9]"), "012345678", "b begins at byte 5, after");
  ExpectError(two("[1,5]", "[5,9]"), "012345678", "a begins at byte 1, after");
  ExpectError(two("[0,4]", "[4,8]"), "0123456789", "2 bytes after the last");
  ExpectError(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},)"
              R"("a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})",
              "0123", "header: a is there twice");
}

TEST_F(SafetensorsTest, RefusesHeadersThatAreNone) {
  EXPECT_FALSE(OpenBytes("").ok());
  EXPECT_FALSE(OpenBytes("1234567").ok());
  EXPECT_FALSE(OpenBytes(std::string(8, '\0')).ok());
  EXPECT_FALSE(OpenBytes(std::string(8, '\xff') + "{}").ok());
  EXPECT_FALSE(OpenBytes(std::string("\3\0\0\0\0\0\0\0{}", 10)).ok());
  EXPECT_FALSE(OpenBytes(std::string("\0\0\0\0\0\0\0\x80{}", 10)).ok());
  ExpectError("[]", "", "is not a JSON object");
  ExpectError("{", "", "is not JSON");
  ExpectError("{} x", "", "is not JSON");
  ExpectError("{\"\xff\":1}", "", "is not JSON");
  // Deep nesting must not become deep recursion.
  const std::string deep =
      "{\"a\":" + std::string(1 << 20, '[') + std::string(1 << 20, ']') + "}";
  ExpectError(deep, "", "a: its header entry is not an object");
  ExpectError("{\"a\":{\"dtype\":\"F32\",\"shape\":[" +
                  std::string(1 << 20, '[') + std::string(1 << 20, ']') +
                  "],\"data_offsets\":[0,4]}}",
              "0123", "a: size 0 of its shape");
}

TEST_F(SafetensorsTest, RefusesEveryCutAndAllButHarmlessBitFlips) {
  ASSERT_TRUE(
      WriteSafetensors(Path(), {{"a", TensorType::kF32, {2}, {1, 2}},
                                {"bc", TensorType::kF16, {3}, {1, 2, 3}}})
          .ok());
  const std::string good = *ReadFile(Path());
  for (size_t size = 0; size < good.size(); ++size) {
    EXPECT_FALSE(OpenBytes(good.substr(0, size)).ok()) << size;
  }
  for (size_t i = 0; i < good.size(); ++i) {
    for (int bit = 0; bit < 8; ++bit) {
      std::string bad = good;
      bad[i] = static_cast<char>(bad[i] ^ 1 << bit);
      OpenBytes(bad).IgnoreError();  // a Status, whatever it says
    }
  }
  EXPECT_FALSE(OpenBytes(good + "x").ok());
}

TEST_F(SafetensorsTest, RefusesToWriteNonsense) {
  const std::vector<NamedTensor> wrong_count = {
      {"a", TensorType::kF32, {2}, {1}}};
  EXPECT_THAT(WriteSafetensors(Path(), wrong_count).ToString(),
              HasSubstr("a: 1 values for the shape [2]"));
  const std::vector<NamedTensor> twice = {{"a", TensorType::kF32, {1}, {1}},
                                          {"a", TensorType::kF32, {1}, {1}}};
  EXPECT_THAT(WriteSafetensors(Path(), twice).ToString(), HasSubstr("twice"));
  EXPECT_FALSE(
      WriteSafetensors(Path(), {{"a", TensorType::kI64, {1}, {1}}}).ok());
  EXPECT_FALSE(
      WriteSafetensors(Path(), {{"\xff", TensorType::kF32, {1}, {1}}}).ok());
  EXPECT_FALSE(WriteSafetensors("/nowhere/at/all", {}).ok());
}

class ShardedTest : public SafetensorsTest {
 protected:
  void SetUp() override {
    ASSERT_TRUE(WriteSafetensors(Path("one.safetensors"),
                                 {{"a", TensorType::kF32, {1}, {1}}})
                    .ok());
    ASSERT_TRUE(WriteSafetensors(Path("two.safetensors"),
                                 {{"b", TensorType::kF32, {1}, {2}}})
                    .ok());
  }
  absl::StatusOr<std::unique_ptr<Safetensors>> OpenWith(
      const std::string& weight_map) {
    EXPECT_TRUE(WriteFile(Path("model.safetensors.index.json"),
                          absl::StrCat(R"({"metadata":{"total_size":8},)",
                                       R"("weight_map":)", weight_map, "}"))
                    .ok());
    return OpenSharded(folder_.path());
  }
};

TEST_F(ShardedTest, JoinsTheShards) {
  absl::StatusOr<std::unique_ptr<Safetensors>> file =
      OpenWith(R"({"a":"one.safetensors","b":"two.safetensors"})");
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_THAT(*ToFloats(*(*file)->Find("a")), ElementsAre(1));
  EXPECT_THAT(*ToFloats(*(*file)->Find("b")), ElementsAre(2));
}

TEST_F(ShardedTest, PrefersTheSingleFile) {
  ASSERT_TRUE(OpenWith(R"({"a":"one.safetensors"})").ok());
  ASSERT_TRUE(
      WriteSafetensors(Path(), {{"c", TensorType::kF32, {1}, {3}}}).ok());
  EXPECT_NE((*OpenSharded(folder_.path()))->Find("c"), nullptr);
}

TEST_F(ShardedTest, RefusesAnIndexThatDisagrees) {
  const auto error = [this](const std::string& weight_map) {
    return OpenWith(weight_map).status().ToString();
  };
  EXPECT_THAT(error(R"({"a":"one.safetensors","c":"two.safetensors",)"
                    R"("b":"two.safetensors"})"),
              HasSubstr("no tensor c"));
  EXPECT_THAT(error(R"({"a":"two.safetensors","b":"one.safetensors"})"),
              HasSubstr("no tensor a"));
  EXPECT_THAT(error(R"({"a":"three.safetensors"})"), HasSubstr("three"));
  for (const char* path : {"../one.safetensors", "/etc/passwd", "a/b", "", ".",
                           "..", ".hidden", "a\\\\b", "a\\u0000b"}) {
    EXPECT_THAT(error(absl::StrCat(R"({"a":")", path, R"("})")),
                HasSubstr("not a plain file name"))
        << path;
  }
  EXPECT_THAT(error(R"({"a":1})"), HasSubstr("a: its shard is not a string"));
  EXPECT_THAT(error("[]"), HasSubstr("no object weight_map"));
  ASSERT_TRUE(WriteSafetensors(Path("two.safetensors"),
                               {{"a", TensorType::kF32, {1}, {2}}})
                  .ok());
  EXPECT_THAT(error(R"({"a":"one.safetensors","b":"two.safetensors"})"),
              HasSubstr("a is in another shard too"));
}

TEST_F(SafetensorsTest, SaysWhatAFolderWithoutWeightsLacks) {
  const absl::Status status = OpenSharded(folder_.path()).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(status.ToString(), HasSubstr("model.safetensors.index.json"));
}

}  // namespace
}  // namespace vitrine
