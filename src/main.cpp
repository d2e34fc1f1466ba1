#include "farskip/cli/command.h"

int main(int argc, char** argv) {
  return farskip::run_command_line(argc, argv);
}
