#include "model/config.h"

#include "kernels/base/file.h"

namespace quest {

Config::Config(const std::string& path) : Config(path, read_file(path)) {}

Config::Config(const std::string& name, std::string_view text) : path_(name) {
  if (parser_.parse(text.data(), text.size(), true).get(root_) || !root_.is_object())
    refuse("the file", "a JSON object", "something else");
}

bool Config::has(const std::string& key) const {
  const auto found = root_.at_pointer("/" + key);
  return !found.error() && !found.value_unsafe().is_null();
}

void Config::refuse(const std::string& place, const std::string& expected, const std::string& found,
                    const std::string& advice) const {
  fail(Exit::input, "%s: %.120s: expected %s, found %.120s; %s", path_.c_str(), place.c_str(),
       expected.c_str(), found.c_str(), advice.c_str());
}

}  // namespace quest
