// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "farskip/graph/graph.h"

namespace farskip {

/// Before the names of what is the teacher's.
inline constexpr std::string_view kTeacherPrefix = "teacher.";
std::string teacher_name(std::string_view name);

/// Two forward graphs in one, and what were their outputs, those of the teacher under teacher_name(). The
/// graph itself has no outputs yet: its maker says what is to leave it.
struct JoinedModels {
  Graph graph;
  std::map<std::string, ValueId, std::less<>> values;
};

/// One graph that runs a teacher and a student over the same micro-batch. Inputs of the same name are shared.
/// A parameter of the teacher is called what `parameter_name` makes of its name; where that is the name of a
/// parameter of the student, the two are one. Nodes of the teacher come first and have scope model 1, so that
/// an order by the graph is done with the teacher before the student begins, while a schedule may put the
/// computation of one under the transports of the other. No value changes.
///
/// `from_teacher`: names of outputs of both graphs. Where the student's nodes read one of these values they
/// read the teacher's instead.
JoinedModels join_models(const Graph& student, const Graph& teacher,
                         const std::function<std::string(std::string_view)>& parameter_name,
                         const std::vector<std::string>& from_teacher = {});

}  // namespace farskip
