#pragma once
void pictures();  // ends the program if something differs
