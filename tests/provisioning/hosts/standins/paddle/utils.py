def run_check():
    print("PaddlePaddle is installed successfully!")
